"""How far another engine's reading of a prompt may lie from a known one: kernels sum in other orders."""

from collections.abc import Mapping
from dataclasses import dataclass, field

_RELATIVE = {"float32": 2e-3, "bfloat16": 5e-2, "float16": 1e-2}


@dataclass(frozen=True)
class Drift:
    """What a method's canaries may drift by, a share of the score by the model's dtype, and `slack` beside it.

    Of a score below `floor` it is that share of `floor`: 1 is what a guard over spans reads of a text without evidence.
    """

    relative: Mapping[str, float] = field(default_factory=lambda: _RELATIVE, hash=False)
    floor: float = 1.0
    slack: float = 0.0

    def of(self, score: float, dtype: str) -> float:
        """How far from this score another engine's may lie."""
        return self.relative[dtype] * max(abs(score), self.floor) + self.slack


FEW_NEURONS = Drift(slack=2.0)
"""For what counts neurons: a draw may fall the other way on another engine for a few."""

DELTA_DRIFT = Drift(floor=0.2)
"""A prompt that is hardly pushed reads nearly zero: a share of that would be no room at all."""
