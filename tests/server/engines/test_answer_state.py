"""What readings mean under a request's policy."""

import pytest
from guards.core.part import Part

from guards.core.verdict import GuardMode, Reading, Scope, Stage, Verdict
from server.engines.answer_state import AnswerState, GuardFacts
from server.engines.base import EngineRequest, Sampling

FACTS = {
    "a": GuardFacts("maths", "ksd", Scope.BOTH, (Part("chat", 3), Part("bare", 2)), (2.0, 1.0)),
    "b": GuardFacts("code", "ksd", Scope.PROMPT, (Part("chat", 3),), (2.0,)),
    "c": GuardFacts("maths", "neuron-adjust", Scope.BOTH, (Part("", 1),), ()),
}
QUIET = {
    "a": (Reading.OUTSIDE, (9.0, 9.0)),
    "b": (Reading.OUTSIDE, (9.0,)),
    "c": (Reading.OUTSIDE, (5.0,)),
}


def row(**modes: GuardMode) -> AnswerState:
    return AnswerState(EngineRequest("r", (1, 2, 3), Sampling(max_tokens=4), modes))


def test_a_quiet_position_is_allowed_and_recorded() -> None:
    state = row()
    assert state.judge(FACTS, QUIET) is Verdict.ALLOW
    assert state.verified
    assert state.neurons_shifted == 5
    assert [score.guard for score in state.prompt_scores] == ["a", "b", "c"]


def test_a_hit_is_enforced_where_the_request_names_no_mode() -> None:
    state = row()
    assert state.judge(FACTS, {**QUIET, "a": (Reading.INSIDE, (9.0, 0.5))}) is Verdict.ABSTAIN
    score = state.hits["a"].score
    assert (score.part, score.layer, score.score, score.tau, score.position) == ("bare", 2, 0.5, 1.0, 2)
    assert score.stage is Stage.PROMPT


def test_shadow_counts_and_lets_through() -> None:
    state = row(a=GuardMode.SHADOW)
    assert state.judge(FACTS, {**QUIET, "a": (Reading.INSIDE, (1.0, 9.0))}) is Verdict.ALLOW
    assert state.hits["a"].mode is GuardMode.SHADOW


def test_scope_leaves_generated_positions_out() -> None:
    state = row()
    state.judge(FACTS, QUIET)
    state.generated = 1
    assert state.judge(FACTS, {**QUIET, "b": (Reading.INSIDE, (1.0,))}) is Verdict.ALLOW
    assert state.judge(FACTS, {**QUIET, "a": (Reading.INSIDE, (1.0, 9.0))}) is Verdict.ABSTAIN
    assert state.hits["a"].score.stage is Stage.GENERATION


@pytest.mark.parametrize("mode", list(GuardMode))
@pytest.mark.parametrize("reading", [Reading.MISSING, Reading.INVALID])
def test_no_reading_is_an_error_in_every_mode(reading: Reading, mode: GuardMode) -> None:
    state = row(a=mode)
    assert state.judge(FACTS, {**QUIET, "a": (reading, (float("nan"), 9.0))}) is Verdict.ERROR
    assert not state.verified


def test_a_guard_nobody_reported_on_is_an_error() -> None:
    state = row()
    assert state.judge(FACTS, {"a": QUIET["a"], "b": QUIET["b"]}) is Verdict.ERROR


def test_an_error_outweighs_an_abstention() -> None:
    state = row()
    readings = {**QUIET, "a": (Reading.INSIDE, (1.0, 9.0)), "b": (Reading.INVALID, (float("nan"),))}
    assert state.judge(FACTS, readings) is Verdict.ERROR


def test_a_verdict_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match="no truth value"):
        bool(Verdict.ALLOW)
