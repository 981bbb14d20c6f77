"""What is fuzzed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random

Try = Callable[[Random], str]
"""Makes one mutation with these dice, hands it in, and says in a word or two what became of it.

Whatever it raises is a finding.
"""


@dataclass(frozen=True)
class Inputs:
    """What a target takes: bytes, of which the first says what the others are.

    `good` is what mutations start from, `mutation` makes one with dice, and `tried` hands any bytes in, whoever made
    them. `fragments` are worth putting in.
    """

    good: Sequence[bytes]
    mutation: Callable[[Random], bytes]
    tried: Callable[[bytes], str]
    fragments: Sequence[bytes] = ()

    def attempt(self, dice: Random) -> str:
        """A Try."""
        return self.tried(self.mutation(dice))


Target = Callable[[Path], AbstractContextManager[Inputs]]
"""Opened with an empty folder, for as long as its mutations are tried."""


class FindingError(AssertionError):
    """What was handed in was taken, or answered, as it must not be."""
