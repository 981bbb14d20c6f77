"""Prompts whose readings are known, and whether a live engine still gives them."""

from collections.abc import Sequence

from guards.artifact.manifest import Canary
from guards.core.verdict import GuardKind, Reading

RELATIVE_TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""How far a score may drift between two engines of one dtype: kernels sum in other orders. Of a score below 1, which is
the distance of the two sides' means for a pooled guard, this share of 1."""
SHIFT_SLACK = 2.0
"""Neurons whose draw may fall the other way for the same reason."""


def disagreement(
    canary: Canary, reading: Reading, scores: Sequence[float], *, dtype: str, kind: GuardKind, alone: bool
) -> str | None:
    """None when the live reading agrees with the canary, else what was got and wanted.

    `alone` is False where another guard changes activations: scores then move for a good reason, and only whether
    the guard fires must still agree.
    """
    if reading not in (Reading.OUTSIDE, Reading.INSIDE):
        return f"got no finite reading ({reading.name}), wanted scores {list(canary.scores)}"
    if len(scores) != len(canary.scores):
        return f"got {len(scores)} score(s), wanted {len(canary.scores)}"
    fires = reading is Reading.INSIDE if kind is GuardKind.DETECTOR else scores[0] > 0
    if fires != canary.fires:
        return f"got a guard that {'fires' if fires else 'does not fire'}, wanted the opposite"
    if not alone:
        return None
    slack = SHIFT_SLACK if kind is GuardKind.INTERVENTION else 0.0
    for got, wanted in zip(scores, canary.scores, strict=True):
        if not abs(got - wanted) <= RELATIVE_TOLERANCE[dtype] * max(abs(wanted), 1.0) + slack:
            return f"got score {got:.6g}, wanted {wanted:.6g}"
    return None
