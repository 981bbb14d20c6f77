"""What a server has loaded mostly stays: Python need not look for garbage in it again and again.

A search that goes over all of it takes a third of a second beside vLLM, and every answer waits.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def settle() -> None:
    """Takes all that is there now out of later searches."""
    gc.collect()
    gc.freeze()


@contextmanager
def thawed() -> Iterator[None]:
    """What is let go of inside is found, though it had settled. What is there behind it settles where it had before."""
    settled = gc.get_freeze_count() > 0
    gc.unfreeze()
    try:
        yield
    finally:
        if settled:
            settle()
