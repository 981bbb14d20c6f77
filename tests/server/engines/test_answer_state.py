"""What readings mean under a request's policy."""

from dataclasses import replace

import pytest

from guards.contract.guard import Part
from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardMode, Reading, Scope, Stage, Verdict
from server.engines.answer_state import AnswerState, GuardFacts
from server.engines.events import Acted
from server.engines.request import EngineRequest, Sampling

FACTS = {
    "a": GuardFacts("maths", "ksd", (Part("chat", (3,)), Part("bare", (2, 4))), None, "a" * 64),
    "b": GuardFacts("code", "ksd", (Part("chat", (3,)),), None, "b" * 64),
    "c": GuardFacts("maths", "neuron-adjust", (Part("", (1,)),), "neurons", "c" * 64),
}
RULES = {"a": Rule(taus=(2.0, 1.0)), "b": Rule(scope=Scope.PROMPT, taus=(2.0,)), "c": Rule()}
QUIET = {
    "a": (Reading.OUTSIDE, (9.0, 9.0)),
    "b": (Reading.OUTSIDE, (9.0,)),
    "c": (Reading.OUTSIDE, (5.0,)),
}


def answer(**rules: Rule) -> AnswerState:
    return AnswerState(EngineRequest("r", (1, 2, 3), Sampling(max_tokens=4), Policy({**RULES, **rules})))


def test_a_quiet_position_is_allowed_and_recorded() -> None:
    state = answer()
    assert state.judge(FACTS, QUIET) is Verdict.ALLOW
    assert state.verified
    assert state.acted == [(2, Acted("c", "neurons", 5.0))]
    assert [score.guard for score in state.prompt_scores] == ["a", "b", "c"]


def test_a_hit_ends_the_answer_and_names_the_part_that_is_furthest_inside() -> None:
    state = answer()
    assert state.judge(FACTS, {**QUIET, "a": (Reading.INSIDE, (9.0, 0.5))}) is Verdict.ABSTAIN
    score = state.hits["a"].score
    assert (score.part, score.layers, score.score, score.tau, score.position) == ("bare", (2, 4), 0.5, 1.0, 2)
    assert score.stage is Stage.PROMPT


def test_shadow_counts_and_lets_through() -> None:
    state = answer(a=replace(RULES["a"], mode=GuardMode.SHADOW))
    assert state.judge(FACTS, {**QUIET, "a": (Reading.INSIDE, (1.0, 9.0))}) is Verdict.ALLOW
    assert state.hits["a"].mode is GuardMode.SHADOW


def test_off_counts_nothing_and_still_needs_a_reading() -> None:
    inside, missing = (Reading.INSIDE, (1.0, 9.0)), (Reading.MISSING, ())
    state = answer(a=replace(RULES["a"], mode=GuardMode.OFF))
    assert state.judge(FACTS, {**QUIET, "a": inside}) is Verdict.ALLOW
    assert state.hits == {}
    assert state.judge(FACTS, {**QUIET, "a": missing}) is Verdict.ERROR


def test_scope_leaves_generated_positions_out() -> None:
    state = answer()
    state.judge(FACTS, QUIET)
    state.generated = 1
    assert state.judge(FACTS, {**QUIET, "b": (Reading.INSIDE, (1.0,))}) is Verdict.ALLOW
    assert state.judge(FACTS, {**QUIET, "a": (Reading.INSIDE, (1.0, 9.0))}) is Verdict.ABSTAIN
    assert state.hits["a"].score.stage is Stage.GENERATION


@pytest.mark.parametrize("mode", list(GuardMode))
@pytest.mark.parametrize("reading", [Reading.MISSING, Reading.INVALID])
def test_no_reading_is_an_error_in_every_mode(reading: Reading, mode: GuardMode) -> None:
    state = answer(a=replace(RULES["a"], mode=mode))
    assert state.judge(FACTS, {**QUIET, "a": (reading, (float("nan"), 9.0))}) is Verdict.ERROR
    assert not state.verified


def test_a_guard_nobody_reported_on_is_an_error() -> None:
    state = answer()
    assert state.judge(FACTS, {"a": QUIET["a"], "b": QUIET["b"]}) is Verdict.ERROR


def test_an_error_outweighs_an_abstention() -> None:
    state = answer()
    readings = {**QUIET, "a": (Reading.INSIDE, (1.0, 9.0)), "b": (Reading.INVALID, (float("nan"),))}
    assert state.judge(FACTS, readings) is Verdict.ERROR


def test_a_verdict_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match="no truth value"):
        bool(Verdict.ALLOW)


def test_each_answer_is_judged_and_shown_under_its_own_tau() -> None:
    for tau, verdict in ((0.5, Verdict.ABSTAIN), (0.49, Verdict.ALLOW)):
        state = answer(b=Rule(taus=(tau,)))
        reading = Reading.INSIDE if tau >= 0.5 else Reading.OUTSIDE
        assert state.judge(FACTS, {**QUIET, "b": (reading, (0.5,))}) is verdict
        assert [score.tau for score in state.prompt_scores] == [2.0, tau, None]
        assert [hit.score.tau for hit in state.hits.values()] == ([tau] if verdict is Verdict.ABSTAIN else [])


def test_the_nearest_part_is_told_by_the_requests_taus() -> None:
    readings = {**QUIET, "a": (Reading.OUTSIDE, (9.0, 9.0))}
    for taus, part in (((2.0, 1.0), "chat"), ((1.0, 2.0), "bare")):
        state = answer(a=Rule(taus=taus))
        state.judge(FACTS, readings)
        assert (state.prompt_scores[0].part, state.prompt_scores[0].tau) == (part, 2.0)
