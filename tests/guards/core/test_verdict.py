"""A reading becomes a verdict; only an explicit OUTSIDE or INSIDE ever lets a token out."""

import itertools

import pytest

from guards.core.verdict import GuardMode, Reading, Scope, Stage, Verdict, decide


@pytest.mark.parametrize(
    ("reading", "mode", "judged"),
    [*itertools.product((Reading.MISSING, Reading.INVALID), GuardMode, (True, False))],
)
def test_no_reading_is_an_error_in_every_mode_and_scope(reading: Reading, mode: GuardMode, judged: bool) -> None:
    assert decide(reading, mode, judged) is Verdict.ERROR


@pytest.mark.parametrize(
    ("reading", "mode", "judged", "wanted"),
    [
        (Reading.INSIDE, GuardMode.ENFORCE, True, Verdict.ABSTAIN),
        (Reading.INSIDE, GuardMode.SHADOW, True, Verdict.SHADOW),
        (Reading.INSIDE, GuardMode.OFF, True, Verdict.ALLOW),
        (Reading.INSIDE, GuardMode.ENFORCE, False, Verdict.ALLOW),
        (Reading.INSIDE, GuardMode.SHADOW, False, Verdict.ALLOW),
        (Reading.OUTSIDE, GuardMode.ENFORCE, True, Verdict.ALLOW),
        (Reading.OUTSIDE, GuardMode.SHADOW, True, Verdict.ALLOW),
        (Reading.OUTSIDE, GuardMode.ENFORCE, False, Verdict.ALLOW),
    ],
)
def test_a_finite_reading_decides(reading: Reading, mode: GuardMode, judged: bool, wanted: Verdict) -> None:
    assert decide(reading, mode, judged) is wanted


def test_fresh_memory_reads_missing() -> None:
    assert Reading(0) is Reading.MISSING
    assert decide(Reading(0), GuardMode.ENFORCE, True) is Verdict.ERROR


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_verdict_has_no_truth_value(verdict: Verdict) -> None:
    with pytest.raises(TypeError, match="no truth value"):
        bool(verdict)


@pytest.mark.parametrize(
    ("stage", "scope", "wanted"),
    [
        (Stage.PROMPT, Scope.PROMPT, True),
        (Stage.PROMPT, Scope.GENERATION, False),
        (Stage.PROMPT, Scope.BOTH, True),
        (Stage.GENERATION, Scope.PROMPT, False),
        (Stage.GENERATION, Scope.GENERATION, True),
        (Stage.GENERATION, Scope.BOTH, True),
    ],
)
def test_scope_covers_its_stages(stage: Stage, scope: Scope, wanted: bool) -> None:
    assert stage.within(scope) is wanted
