"""Threads beside the event loop for what requests make the processor do: a few at a time, with a bounded queue."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, ParamSpec, TypeVar

from server.engines.errors import EngineBusyError

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """Whoever is cancelled while queued is never begun, so that callers who hang up free what they asked for.

    What was begun is not interrupted: it has to be bounded before.
    """

    def __init__(self, name: str, *, at_a_time: int, most_waiting: int) -> None:
        self._name = name
        self._pool = ThreadPoolExecutor(at_a_time, thread_name_prefix=f"skillguard-{name}")
        self._at_a_time, self._most = at_a_time, at_a_time + most_waiting
        self._lock = Lock()
        self._taken = 0

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the work gives or raises. Raises EngineBusyError where too much is queued."""
        with self._lock:
            if self._taken >= self._most:
                raise EngineBusyError(f"too many requests wait for {self._name}: try again")
            self._taken += 1
        held = [partial(contextvars.copy_context().run, work, *args, **kwargs)]
        del work, args, kwargs  # the pool keeps what was cancelled until it comes to it, and this frame with it
        try:
            future = self._pool.submit(lambda: held.pop()())
        except BaseException:  # no thread can be started
            held.clear()
            self._done()
            raise
        future.add_done_callback(lambda _: held.clear())
        future.add_done_callback(self._done)
        return await asyncio.wrap_future(future)

    @property
    def waiting(self) -> int:
        """How many are queued behind those that run."""
        with self._lock:
            return max(0, self._taken - self._at_a_time)

    def close(self) -> None:
        """Begins nothing more. What runs goes on to its end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _done(self, _: Future[Any] | None = None) -> None:
        with self._lock:
            self._taken -= 1
