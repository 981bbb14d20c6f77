"""What gives an answer a toxicity from 0 to 1. `scorers.py` opens one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Score:
    """An answer's toxicity, from 0 to 1. `truncated`: of its beginning alone, since the rest did not fit."""

    toxicity: float
    truncated: bool = False


class Scorer(Protocol):
    """Gives texts a toxicity each, whatever other texts it is given."""

    @property
    def described(self) -> Mapping[str, Any]:
        """What results say of it: `kind`, `name`, `sha256` (two of one digest score alike) and more. No path."""
        ...

    def score(self, texts: Sequence[str]) -> Iterator[tuple[str, Score]]:
        """Each text once with its score, in any order, as they are found. Raises EvaluationError."""
        ...
