"""The audit log's writer: a thread of its own, so that a slow disk holds up those who wait for it and nobody else."""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, Full, Queue

from server.audit.chain import Link
from server.audit.folder import AuditFolder
from server.audit.records import Kind
from server.errors import AuditError

logger = logging.getLogger("skillguard.audit")

Record = Mapping[str, object]

_WAITING = 1024
"""Answers whose records may wait to be written; those of further ones are refused at once."""
_BATCH = 256
"""Of them written, and made safe, at a time."""
_PATIENCE_SECONDS = 10.0
"""How long an answer waits for its records."""


@dataclass(frozen=True)
class _Waiting:
    records: Sequence[Record]
    written: "Future[None]"


class AuditLog:
    """Takes records from an event loop. `refuse`: who cannot be recorded gets an error, and else is only counted."""

    def __init__(
        self,
        folder: AuditFolder,
        *,
        refuse: bool,
        waiting: int = _WAITING,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._folder = folder
        self._refuse = refuse
        self._patience_seconds = patience_seconds
        self._queue: Queue[_Waiting | None] = Queue(waiting)
        self._thread: threading.Thread | None = None
        self.written = Counter({kind.value: 0 for kind in Kind})
        """Records by kind."""
        self.failures = 0
        """Records that were not written, or not in time for their answer."""
        self.failing: str | None = None
        """Why the last one was not written; None once one is again."""

    @property
    def link(self) -> Link:
        """How far the chain is written."""
        return self._folder.link

    @property
    def cut_bytes(self) -> int:
        """See `AuditFolder.cut_bytes`."""
        return self._folder.cut_bytes

    @property
    def waiting(self) -> int:
        """Answers whose records are not written yet."""
        return self._queue.qsize()

    def start(self) -> None:
        """Starts the thread; records may be put before."""
        logger.info("the audit log goes on behind %d lines, the last with hash %s", self.link.lines, self.link.head)
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Writes what is waiting and gives the folder up. Blocks as long as that takes."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
            logger.info("the audit log ends at %d lines, the last with hash %s", self.link.lines, self.link.head)
        self._folder.close()

    async def record(self, records: Sequence[Record], *, required: bool = False) -> None:
        """Returns once all are written. Raises AuditError where they are not, if that is to refuse an answer or they
        are `required`.
        """
        written = self.put(records)
        if not (self._refuse or required) or written is None:
            return
        waiter = asyncio.wrap_future(written)
        waiter.add_done_callback(_heard)
        done, _ = await asyncio.wait({waiter}, timeout=self._patience_seconds)
        if not done:
            self._fail(len(records), f"not within {self._patience_seconds:g} seconds")
            raise AuditError(f"the audit log is not written: {self.failing}")
        if (error := waiter.exception()) is not None:
            raise AuditError(f"the audit log is not written: {error}") from error

    def put(self, records: Sequence[Record]) -> "Future[None] | None":
        """Queues records without waiting for them; None for none of them."""
        if not records:
            return None
        waiting = _Waiting(records, Future())
        waiting.written.set_running_or_notify_cancel()  # whoever stops waiting for it does not take it back
        try:
            self._queue.put_nowait(waiting)
        except Full:
            self._fail(len(records), why := "too many records are waiting")
            waiting.written.set_exception(AuditError(why))
        return waiting.written

    def _fail(self, records: int, why: str) -> None:
        self.failures += records
        if self.failing != why:
            logger.error("the audit log is not written: %s", why)
        self.failing = why

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            try:
                while len(batch) < _BATCH and batch[-1] is not None:
                    batch.append(self._queue.get_nowait())
            except Empty:
                pass
            self._write([each for each in batch if each is not None])
            if batch[-1] is None:
                return

    def _write(self, batch: Sequence[_Waiting]) -> None:
        records = [record for each in batch for record in each.records]
        if not records:
            return
        try:
            self._folder.append(records)
        except Exception as error:  # a bug here too is a record that is not written, and must not end the thread
            self._fail(len(records), f"{type(error).__name__}: {error}")
            for each in batch:
                each.written.set_exception(error)
            return
        if self.failing is not None:
            logger.warning("the audit log is written again")
        self.failing = None
        self.written.update(str(record["kind"]) for record in records)
        for each in batch:
            each.written.set_result(None)


def _heard(waiter: "asyncio.Future[None]") -> None:
    """Fetches an error that nobody waits for any longer, which asyncio would complain of."""
    if not waiter.cancelled():
        waiter.exception()
