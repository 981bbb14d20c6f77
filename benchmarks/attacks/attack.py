"""What an attack is."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """Where an attack goes, and how long it goes on unless it has nothing left to try."""

    host: str
    port: int
    seconds: float


Run = Callable[[Target], Awaitable[str]]
"""Attacks, and says in a few words what it met. Runs in a process of its own."""


@dataclass(frozen=True)
class Attack:
    """One row of the result."""

    name: str
    what: str
    """What is done, as the page tells it."""
    run: Run
    descriptors: int | None = None
    """The most that the server may have open, where the attack is about that."""
    flags: tuple[str, ...] = ()
    """Of `serve`, beyond those of every attack."""
