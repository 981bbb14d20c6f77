"""Prompts whose readings are known, and whether a live engine still gives them."""

from collections.abc import Sequence

from guards.artifact.manifest import Canary
from guards.core.verdict import GuardKind, Reading

RELATIVE_TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""How far a score may drift between two engines of one dtype: kernels sum in other orders. Of a score below 1, which is
the distance of the two sides' means for a pooled guard, this share of 1."""
SHIFT_SLACK = 2.0
"""Neurons whose draw may fall the other way for the same reason."""
CLEAR_INSIDE = 0.9
CLEAR_OUTSIDE = 1.1
"""A canary's score over tau is at most the one, or at least the other, however little its dtype drifts."""


def drift(score: float, *, dtype: str, kind: GuardKind) -> float:
    """How far from this score another engine's may lie."""
    slack = SHIFT_SLACK if kind is GuardKind.INTERVENTION else 0.0
    return RELATIVE_TOLERANCE[dtype] * max(abs(score), 1.0) + slack


def clear_verdict(scores: Sequence[float], taus: Sequence[float] | None, *, dtype: str) -> bool | None:
    """Whether a guard surely fires where these scores were read (True), surely does not (False), or neither (None).

    Surely: with every score anywhere within its drift. `taus` are None for an intervention, which is never sure not to
    act: a prompt that shifts no neuron here could shift one on another engine.
    """
    if taus is None:
        return True if scores[0] > drift(scores[0], dtype=dtype, kind=GuardKind.INTERVENTION) else None
    drifts = [drift(score, dtype=dtype, kind=GuardKind.DETECTOR) for score in scores]
    parts = list(zip(scores, drifts, taus, strict=True))
    if any(score / tau <= CLEAR_INSIDE and score + room <= tau for score, room, tau in parts):
        return True
    return False if all(score / tau >= CLEAR_OUTSIDE and score - room > tau for score, room, tau in parts) else None


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
    for got, wanted in zip(scores, canary.scores, strict=True):
        if not abs(got - wanted) <= drift(wanted, dtype=dtype, kind=kind):
            return f"got score {got:.6g}, wanted {wanted:.6g}"
    return None
