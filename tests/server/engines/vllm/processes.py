"""Forks vLLM's processes from one that has imported it. vLLM starts each anew, which takes a core 16 seconds a process.

Each is still a process of its own, with its arguments and its environment; only what modules read of that when they are
imported is the first one's. Servers that tests start on the command line, such as in `tests/test_serve_vllm.py`, start
theirs as vLLM does, and all do where SPAWN is set: so a hang can be told from a fault.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

IMPORTED = (
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.model_executor.models.llama",
    "guards.inside.vllm.worker",
    "guards.inside.vllm.capture_worker",
)
SPAWN = "SKILLGUARD_TESTS_SPAWN"
_get_context = multiprocessing.get_context


def _forking(method: str | None = None) -> Any:
    """In the engine's process, whose workers are forked from it, as vLLM does by itself where nothing forbids it."""
    return _get_context("fork" if method == "spawn" else method)


class _Process(ForkServerProcess):
    """Takes on the environment of whoever starts it: the process it is forked from keeps that of its own start."""

    def start(self) -> None:
        self._environ = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environ)
        multiprocessing.get_context = _forking
        super().run()


class _Context(ForkServerContext):
    Process = _Process


@contextmanager
def forked() -> Iterator[None]:
    """Inside, what asks for a context of new processes gets one that forks them, unless SPAWN is set."""
    if os.environ.get(SPAWN):
        yield
        return
    context = _Context()
    context.set_forkserver_preload(list(IMPORTED))

    def get_context(method: str | None = None) -> Any:
        return context if method == "spawn" else _get_context(method)

    multiprocessing.get_context = get_context
    try:
        yield
    finally:
        multiprocessing.get_context = _get_context
