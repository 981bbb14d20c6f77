"""What a guard says about one position, and what the server makes of it."""

from enum import IntEnum, StrEnum
from typing import NoReturn


class Reading(IntEnum):
    """A guard's code for one sampled position. Zero is what fresh memory holds, so zero must not mean "pass"."""

    MISSING = 0
    OUTSIDE = 1
    INSIDE = 2
    INVALID = 3


class GuardKind(StrEnum):
    """A detector has a tau and may abstain; an intervention changes activations."""

    DETECTOR = "detector"
    INTERVENTION = "intervention"


class GuardMode(StrEnum):
    """What a hit of a guard does for a caller: `enforce` abstains, `shadow` only counts, `off` counts for nothing.

    A guard that is off is read all the same: one that gives no valid reading is an error for every caller. An
    intervention that is off does not act on the request; it has no shadow, in which it would act.
    """

    ENFORCE = "enforce"
    SHADOW = "shadow"
    OFF = "off"


class Scope(StrEnum):
    """Which sampled positions a detector judges: the last prompt token, generated tokens, or both (ESU)."""

    PROMPT = "prompt"
    GENERATION = "generation"
    BOTH = "both"


class Stage(StrEnum):
    """Where in a request a position lies."""

    PROMPT = "prompt"
    GENERATION = "generation"

    def within(self, scope: Scope) -> bool:
        """Whether a detector of this scope judges positions of this stage."""
        return scope is Scope.BOTH or scope.value == self.value


class Verdict(StrEnum):
    """The decision for one position under one policy. Compare it by name; it has no truth value."""

    ALLOW = "allow"
    SHADOW = "shadow"
    ABSTAIN = "abstain"
    ERROR = "error"

    def __bool__(self) -> NoReturn:
        raise TypeError("a Verdict has no truth value: compare it with Verdict.ALLOW and the others")


def decide(reading: Reading, mode: GuardMode, judged: bool) -> Verdict:
    """Turns a reading into a verdict; everything but an explicit OUTSIDE or INSIDE is an error, in every mode.

    `judged` is False where the guard's scope leaves the position out; a missing or invalid reading is an
    error even there, since it says that the guard does not work.
    """
    if reading not in (Reading.OUTSIDE, Reading.INSIDE):
        return Verdict.ERROR
    if reading is Reading.OUTSIDE or not judged or mode is GuardMode.OFF:
        return Verdict.ALLOW
    return Verdict.ABSTAIN if mode is GuardMode.ENFORCE else Verdict.SHADOW
