"""Takes turns at large bodies, so that whoever sends many of them leaves the event loop to others."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from server.engines.errors import EngineBusyError
from server.errors import ClientGoneError

T = TypeVar("T")
Gone = Coroutine[Any, Any, object]

LARGE = 1 << 16
"""Bytes. To read so much JSON and to check what it holds takes milliseconds, and of a megabyte up to a tenth of a
second, in which nobody else is served.
"""
REST = 3.0
"""For how many times as long the next one waits."""
BYTES_PER_SECOND = 1 << 25
"""Of large bodies together, beyond what a small one has. To receive a gigabyte takes a second of the event loop's."""
MOST_WAITING = 64
"""Of one tenant."""


class Pace:
    """Lets so many bytes a second through, of all tenants together, in the order in which they ask."""

    def __init__(self, bytes_per_second: float = BYTES_PER_SECOND) -> None:
        self._bytes_per_second = bytes_per_second
        self._free = 0.0
        """When the bytes before are through, by the event loop's clock."""
        self._waiting: Counter[str] = Counter()

    async def take(self, tenant: str, count: int) -> None:
        """Waits until the bytes before these are through. Raises EngineBusyError where too many of a tenant's wait."""
        if self._waiting[tenant] >= MOST_WAITING:
            raise EngineBusyError("too many requests with large bodies come in: try again")
        now = asyncio.get_running_loop().time()
        begin = max(now, self._free)
        self._free = begin + count / self._bytes_per_second
        if begin > now:
            self._waiting[tenant] += 1
            try:
                await asyncio.sleep(begin - now)
            finally:
                self._waiting[tenant] -= 1
                self._waiting = +self._waiting  # without those of whom nothing waits


class _Line:
    """Of one tenant: the first of it waits for a turn, the others behind."""

    def __init__(self) -> None:
        self.first = asyncio.Lock()
        self.waiting = 0


class LargeBodies:
    """One at a time is read and checked, and then none for a while. Small ones never wait.

    Tenants have turns one after another, whoever of them sends more.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._lines: dict[str, _Line] = {}

    async def read(self, tenant: str, size: int, read: Callable[[], T], gone: Callable[[], Gone]) -> T:
        """What `read` makes of a body of so many bytes. Raises what it raises, EngineBusyError where too many wait, and
        ClientGoneError where `gone`, which waits for the caller to hang up, is over before the body's turn.

        What follows on it without a pause, which is where a body is checked, counts as well. So it is waited here, in
        the request's own task, and not in one beside it.
        """
        if size < LARGE:
            return read()
        line = self._lines.setdefault(tenant, _Line())
        if line.waiting >= MOST_WAITING:
            raise EngineBusyError("too many requests with large bodies wait to be read: try again")
        line.waiting += 1
        try:
            async with _unless(gone()), line.first:
                await self._turn.acquire()
        finally:
            line.waiting -= 1
            if not line.waiting:
                del self._lines[tenant]
        loop, began = asyncio.get_running_loop(), time.perf_counter()
        try:
            return read()
        finally:
            loop.call_soon(lambda: loop.call_later(REST * (time.perf_counter() - began), self._turn.release))


@asynccontextmanager
async def _unless(gone: Gone) -> AsyncIterator[None]:
    """Ends what is waited for inside by ClientGoneError once `gone` is over."""
    loop, watcher = asyncio.get_running_loop(), asyncio.ensure_future(gone)
    try:
        async with asyncio.timeout(None) as limit:

            def end(watcher: "asyncio.Future[object]") -> None:
                if not watcher.cancelled():
                    watcher.exception()  # retrieved: whatever ended it, nobody is there any more
                with suppress(RuntimeError):  # its turn came in the very step before
                    limit.reschedule(loop.time())

            watcher.add_done_callback(end)
            try:
                yield
            finally:
                watcher.remove_done_callback(end)
    except TimeoutError as error:
        raise ClientGoneError("The client disconnected.") from error
    finally:
        watcher.cancel()
