"""`skillguard` with a wound that opens by a signal: python -m benchmarks.faults.hurt WOUND serve ...

`thread` ends the thread that runs the batcher, as SystemExit would; `pass` lets one forward pass raise.
"""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from server.cli.main import main

SIGNAL = signal.SIGUSR1


def end_thread(_: int, __: FrameType | None) -> None:
    """Raises SystemExit in the batcher's thread, which no `except Exception` catches."""
    (thread,) = [each for each in threading.enumerate() if "_run_generation_loop" in each.name]
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))


def break_pass(_: int, __: FrameType | None) -> None:
    """The next forward pass of any module raises."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    def fail(module: object, inputs: object) -> None:
        handle.remove()
        raise RuntimeError("a device that fails")

    handle = register_module_forward_pre_hook(fail)


WOUNDS: dict[str, Callable[[int, FrameType | None], None]] = {"thread": end_thread, "pass": break_pass}


if __name__ == "__main__":
    signal.signal(SIGNAL, WOUNDS[sys.argv[1]])
    sys.exit(main(sys.argv[2:]))
