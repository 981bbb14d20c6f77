"""An end to work that may not end by itself: the chat template of a model's folder is a program."""

import ctypes
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class TimeUpError(BaseException):
    """The time of `ended_after` is up. No `Exception`, so that nothing on the way takes it for an error of its own."""


class _Watch:
    """One thread that raises TimeUpError in others. It waits while there is nothing to watch.

    The lock is a plain one: TimeUpError may come at any step, and must not leave it locked.
    """

    def __init__(self) -> None:
        self._lock, self._changed = threading.Lock(), threading.Event()
        self._ends: dict[int, float] = {}
        self._wakes = math.inf
        self._thread: threading.Thread | None = None

    def begin(self, thread: int, seconds: float) -> None:
        """Watches a thread that is not watched yet."""
        with self._lock:
            assert thread not in self._ends, "work under a deadline holds no other"
            if self._thread is None or not self._thread.is_alive():  # a fork has no threads but its own
                self._thread = threading.Thread(target=self._run, name="skillguard-deadlines", daemon=True)
                self._thread.start()
            end = self._ends[thread] = time.monotonic() + seconds
            if end < self._wakes:  # else it looks by itself in time; to wake it costs more than a short rendering
                self._changed.set()  # under the lock: nothing is raised in a thread that holds it

    def end(self, thread: int) -> None:
        """Nothing is raised in it from now on."""
        with self._lock:
            if self._ends.pop(thread, None) is None:
                _raise_in(thread, None)  # it may have been told and not have noticed yet

    def _run(self) -> None:
        while True:
            self._changed.clear()
            now = time.monotonic()
            with self._lock:
                for thread in [thread for thread, end in self._ends.items() if end <= now]:
                    del self._ends[thread]
                    _raise_in(thread, TimeUpError)
                self._wakes = min(self._ends.values(), default=math.inf)
                wait = None if self._wakes == math.inf else self._wakes - now
            self._changed.wait(wait)


_WATCH = _Watch()


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """At the thread's next step of Python; with None, what was to be raised there is not."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None if kind is None else ctypes.py_object(kind))


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Raises TimeUpError in this thread where what is inside takes longer.

    It is raised between two steps of Python: one call of C is not cut short.
    """
    thread = threading.get_ident()
    _WATCH.begin(thread, seconds)
    try:
        yield
    finally:
        _WATCH.end(thread)
