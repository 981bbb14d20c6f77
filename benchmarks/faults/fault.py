"""What a fault is, and what a run of one gives."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.callers import Callers
from benchmarks.faults.served import Served


@dataclass(frozen=True)
class Scene:
    """A served demo with callers who ask all the while, and a folder of its own."""

    served: Served
    callers: Callers
    folder: Path


Seen = Mapping[str, Any]
"""What a fault's script saw, by name. `sound`: whether it is what should be."""


@dataclass(frozen=True)
class Fault:
    """One row of the result."""

    name: str
    engine: str
    what: str
    """What is done, as the page tells it."""
    wanted: str
    """What should come of it."""
    run: Callable[[Scene], Seen]
    serve: Callable[[Path], AbstractContextManager[Served]]
    """Starts the server, with what it needs in that folder."""
    key: Callable[[Path], str | None] = lambda folder: None
    """The callers' key, where the server has a keys file."""
    ranks: int = 1
    """Processes that run the model."""
