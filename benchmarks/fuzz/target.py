"""What is fuzzed."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random

Try = Callable[[Random], str]
"""Makes one mutation with these dice, hands it in, and says in a word or two what became of it.

Whatever it raises is a finding.
"""
Target = Callable[[Path], AbstractContextManager[Try]]
"""Opened with an empty folder, for as long as its mutations are tried."""


class FindingError(AssertionError):
    """What was handed in was taken, or answered, as it must not be."""
