"""Prompts whose readings are known, and whether a live engine still gives them."""

from collections.abc import Sequence

from guards.artifact.manifest import Canary
from guards.core.drift import Drift
from guards.core.verdict import GuardKind, Reading

CLEAR_INSIDE = 0.9
CLEAR_OUTSIDE = 1.1
"""A canary's score over tau is at most the one, or at least the other, however little its dtype drifts."""


def clear_verdict(scores: Sequence[float], taus: Sequence[float], *, dtype: str, drift: Drift) -> bool | None:
    """Whether a guard surely fires where these scores were read (True), surely does not (False), or neither (None).

    Surely: with every score anywhere within its drift. An intervention has no taus, and is never sure not to act: a
    prompt of which it moves nothing here could move it on another engine.
    """
    rooms = [drift.of(score, dtype) for score in scores]
    if not taus:
        return True if scores[0] > rooms[0] else None
    parts = list(zip(scores, rooms, taus, strict=True))
    if any(score / tau <= CLEAR_INSIDE and score + room <= tau for score, room, tau in parts):
        return True
    return False if all(score / tau >= CLEAR_OUTSIDE and score - room > tau for score, room, tau in parts) else None


def disagreement(
    canary: Canary,
    reading: Reading,
    scores: Sequence[float],
    *,
    dtype: str,
    kind: GuardKind,
    drift: Drift,
    alone: bool,
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
        if not abs(got - wanted) <= drift.of(wanted, dtype):
            return f"got score {got:.6g}, wanted {wanted:.6g}"
    return None
