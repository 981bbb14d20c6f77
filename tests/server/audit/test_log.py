"""The writer: what waits for it, and what happens while it cannot write."""

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from server.audit.folder import AuditFolder
from server.audit.log import AuditLog
from server.audit.verify import verify
from server.errors import AuditError

pytestmark = pytest.mark.anyio

RECORD = {"kind": "error"}


class SlowFolder(AuditFolder):
    """Waits for `may_write` before each append."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 1 << 20, fsync=False)
        self.may_write = threading.Event()
        self.appended: list[int] = []

    def append(self, records: Sequence[Mapping[str, object]]) -> None:
        self.may_write.wait()
        super().append(records)
        self.appended.append(len(records))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SlowFolder]:
    folder = SlowFolder(tmp_path)
    yield folder
    folder.close()


async def until_taken(log: AuditLog) -> None:
    """Once the thread has taken what was put, and waits for the disk."""
    while log.waiting:
        await asyncio.sleep(0)


async def test_a_slow_disk_holds_up_who_waits_and_not_the_loop(folder: SlowFolder, tmp_path: Path) -> None:
    log = AuditLog(folder, refuse=True)
    log.start()
    first = asyncio.create_task(log.record([RECORD]))
    await asyncio.sleep(0)
    await until_taken(log)
    others = [asyncio.create_task(log.record([RECORD, RECORD])) for _ in range(20)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert not first.done()
    assert log.waiting == 20
    folder.may_write.set()
    await asyncio.gather(first, *others)
    assert folder.appended == [1, 40], "what waits is written together"
    log.stop()
    assert log.written["error"] == 41
    assert verify([tmp_path]).lines == 41


@pytest.mark.parametrize("refuse", [True, False])
async def test_what_finds_no_place_in_the_queue_is_counted(folder: SlowFolder, refuse: bool) -> None:
    log = AuditLog(folder, refuse=refuse, waiting=2)
    log.put([RECORD])
    log.put([RECORD])
    if refuse:
        with pytest.raises(AuditError, match="too many"):
            await log.record([RECORD])
    else:
        await log.record([RECORD])
    assert (log.failures, log.failing) == (1, "too many records are waiting")
    folder.may_write.set()
    log.start()
    log.stop()
    assert (log.written["error"], log.failing) == (2, None)


async def test_nobody_waits_for_ever(folder: SlowFolder) -> None:
    log = AuditLog(folder, refuse=True, patience_seconds=0)
    log.start()
    with pytest.raises(AuditError, match="not within 0 seconds"):
        await log.record([RECORD])
    folder.may_write.set()
    log.stop()
    assert (log.failures, log.written["error"]) == (1, 1)


async def test_who_gives_up_waiting_takes_nothing_back(folder: SlowFolder) -> None:
    log = AuditLog(folder, refuse=True)
    log.start()
    waiting = asyncio.create_task(log.record([RECORD]))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    folder.may_write.set()
    log.stop()
    assert (waiting.cancelled(), log.written["error"], log.failures) == (True, 1, 0)


async def test_a_record_that_cannot_be_said_fails_alone(folder: SlowFolder) -> None:
    """A bug of ours must not end the thread."""
    folder.may_write.set()
    log = AuditLog(folder, refuse=True)
    log.start()
    with pytest.raises(AuditError, match="not JSON compliant"):
        await log.record([{"kind": "error", "score": float("nan")}])
    await log.record([RECORD])
    log.stop()
    assert (log.failures, log.written["error"], log.failing) == (1, 1, None)


async def test_nothing_to_record_waits_for_nothing(folder: SlowFolder) -> None:
    log = AuditLog(folder, refuse=True)
    await log.record([])
    assert log.waiting == 0
