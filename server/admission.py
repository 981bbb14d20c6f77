"""A door that requests to the model go through, which is shut while a guard's artifact is exchanged."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from server.engines.errors import EngineBusyError
from server.errors import ChangeRefusedError

Leave = Callable[[], None]
"""Says that a request will not ask the engine for anything more. Safe to call twice."""


_MOST_WAITING = 512
"""Each waits with its whole body in memory."""


class Admission:
    """Who comes to a shut door waits. Only where `most_waiting` do is anybody turned away."""

    def __init__(self, most_waiting: int = _MOST_WAITING) -> None:
        self._most_waiting = most_waiting
        self._waiting = 0
        self._opened, self._empty = asyncio.Event(), asyncio.Event()
        self._opened.set()
        self._empty.set()
        self._inside = 0

    @property
    def open(self) -> bool:
        """Whether requests are let in."""
        return self._opened.is_set()

    async def enter(self) -> Leave:
        """Returns once the door is open, with what the request has to call when it is done. Raises EngineBusyError."""
        while not self.open:  # another may have shut it before this one woke up
            if self._waiting >= self._most_waiting:
                raise EngineBusyError(
                    "a guard is being exchanged, and too many requests wait for it already: try again"
                )
            self._waiting += 1
            try:
                await self._opened.wait()
            finally:
                self._waiting -= 1
        self._inside += 1
        self._empty.clear()
        inside = True

        def leave() -> None:
            nonlocal inside
            if inside:
                inside = False
                self._inside -= 1
                if not self._inside:
                    self._empty.set()

        return leave

    @asynccontextmanager
    async def shut(self, patience_seconds: float) -> AsyncIterator[None]:
        """The door is shut and nobody is inside. Raises ChangeRefusedError where they do not leave in time."""
        self._opened.clear()
        try:
            try:
                async with asyncio.timeout(patience_seconds):
                    await self._empty.wait()
            except TimeoutError:
                raise ChangeRefusedError(
                    f"{self._inside} requests did not end within {patience_seconds:g} seconds, and are not cut short: "
                    "nothing has changed; try again, or raise `reload_patience_seconds`."
                ) from None
            yield
        finally:
            self._opened.set()
