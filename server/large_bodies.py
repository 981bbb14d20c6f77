"""Takes turns at large bodies, so that whoever sends many of them leaves the event loop to others."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from server.engines.errors import EngineBusyError

T = TypeVar("T")

LARGE = 1 << 16
"""Bytes. To read so much JSON and to check what it holds takes milliseconds, and of a megabyte up to a tenth of a
second, in which nobody else is served.
"""
REST = 3.0
"""For how many times as long the next one waits."""
MOST_WAITING = 64
"""Of one tenant."""


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

    async def read(self, tenant: str, size: int, read: Callable[[], T]) -> T:
        """What `read` makes of a body of so many bytes. Raises what it raises, and EngineBusyError where too many wait.

        What follows on it without a pause, which is where a body is checked, counts as well.
        """
        if size < LARGE:
            return read()
        line = self._lines.setdefault(tenant, _Line())
        if line.waiting >= MOST_WAITING:
            raise EngineBusyError("too many requests with large bodies wait to be read: try again")
        line.waiting += 1
        try:
            async with line.first:
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
