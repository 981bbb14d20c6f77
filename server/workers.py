"""Threads beside the event loop for what requests make the processor do: a few at a time, with a bounded queue."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
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
        future = self.begin(work, *args, **kwargs)
        del work, args, kwargs
        return await asyncio.wrap_future(future)

    def begin(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queues the work; the future is done once nothing of it runs. Raises EngineBusyError."""
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
        return future

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


class _Share:
    def __init__(self, at_a_time: int) -> None:
        self.places = asyncio.Semaphore(at_a_time)
        self.held = 0
        """By those that wait and those that run."""


class SharedWorkers:
    """Workers for several tenants, none of which can take all threads: each has all but one, and a queue of its own.

    What was begun for a caller who has hung up holds its tenant's place to its end.
    """

    def __init__(self, name: str, *, each_at_a_time: int, each_waiting: int) -> None:
        self._name = name
        self._each, self._most = each_at_a_time, each_at_a_time + each_waiting
        self._workers = Workers(name, at_a_time=each_at_a_time + 1, most_waiting=each_waiting)
        self._shares: dict[str, _Share] = {}

    async def run(self, tenant: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the work gives or raises. Raises EngineBusyError where too much of this tenant's is queued."""
        share = self._shares.setdefault(tenant, _Share(self._each))
        if share.held >= self._most:
            raise EngineBusyError(f"too many requests wait for {self._name}: try again")
        share.held += 1
        try:
            await share.places.acquire()
        except asyncio.CancelledError:
            self._forget(tenant, share)
            raise
        try:
            future = self._workers.begin(work, *args, **kwargs)
        except BaseException:
            self._free(tenant, share)
            raise
        del work, args, kwargs
        loop = asyncio.get_running_loop()

        def done(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the event loop is closed: nobody waits
                loop.call_soon_threadsafe(self._free, tenant, share)

        future.add_done_callback(done)
        return await asyncio.wrap_future(future)

    @property
    def waiting(self) -> int:
        """How many are queued, of all tenants."""
        return sum(max(0, share.held - self._each) for share in self._shares.values()) + self._workers.waiting

    def close(self) -> None:
        """Begins nothing more. What runs goes on to its end."""
        self._workers.close()

    def _free(self, tenant: str, share: _Share) -> None:
        share.places.release()
        self._forget(tenant, share)

    def _forget(self, tenant: str, share: _Share) -> None:
        share.held -= 1
        if not share.held:
            del self._shares[tenant]
