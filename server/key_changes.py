"""Changes of the keys file are recorded, and what would be answered under one waits for that."""

import asyncio
from collections.abc import Callable, Iterable

from server.audit.auditor import Auditor
from server.keyring import KeysFile


class KeyChanges:
    """Records what a keys file took in. A change that is not recorded counts all the same: a revoked key is revoked."""

    def __init__(
        self, file: KeysFile | None, audit: Auditor, know_tenants: Callable[[Iterable[str]], object] = lambda _: None
    ) -> None:
        """`know_tenants` is told the file's tenants whenever it changed."""
        self._file = file
        self._audit = audit
        self._know_tenants = know_tenants
        self._recording: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begins to record what is not recorded yet."""
        if self._file is None or not self._file.changes or not (self._recording is None or self._recording.done()):
            return
        self._know_tenants(self._file.tenants)
        self._recording = asyncio.create_task(self._record(self._file))
        self._recording.add_done_callback(self._recorded)

    async def recorded(self) -> None:
        """Returns once every change is. Raises AuditError where one cannot be; the next to ask tries it again."""
        self.begin()
        while self._recording is not None and not self._recording.done():
            await asyncio.shield(self._recording)
            self.begin()  # what was taken in while the last change was recorded

    async def _record(self, file: KeysFile) -> None:
        while file.changes:
            change = file.changes[0]
            await self._audit.changed("keys_file", change.before, change.after)
            del file.changes[0]

    def _recorded(self, task: asyncio.Task[None]) -> None:
        if self._recording is task:
            self._recording = None
        if not task.cancelled():
            task.exception()  # fetched, since nobody may wait for it
