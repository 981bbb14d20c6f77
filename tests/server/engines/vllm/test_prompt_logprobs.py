"""Log-probabilities of prompts on vLLM: as single requests would tell them, and as the embedded engine does."""

import math
from typing import Any

import pytest

from guards.inside.vllm.events import PromptReport, StepReport, load_prompt, load_report
from server.engines.events import FinishReason
from tests.server.engines import insides
from tests.server.engines.vllm.live import OTHERS, SUMS, Live, greedy

NOTHING = {**insides.WATCHED}


def test_nothing_is_told_that_single_requests_are_not(engine: Live) -> None:
    insides.as_single_requests(engine)


def test_a_refused_end_tells_nothing(engine: Live) -> None:
    insides.nothing_at_a_refused_end(engine)


def test_both_engines_tell_the_same(engine: Live, reference: Live) -> None:
    """Of several prompts at a time, one of them in the cache already."""
    prompts = [*OTHERS, OTHERS[0]]
    theirs, ours = (each.draw(prompts, insides.ASKS, [NOTHING] * 4) for each in (engine, reference))
    for their, our in zip(theirs, ours, strict=True):
        told = [(a, b) for a, b in zip(insides.told(their), insides.told(our), strict=True)][1:]
        for a, b in told:
            assert a.itself is not None
            assert b.itself is not None
            assert (a.itself.token_id, a.itself.token_bytes) == (b.itself.token_id, b.itself.token_bytes)
            assert math.isclose(a.itself.logprob, b.itself.logprob, abs_tol=1e-3)
            assert [each.rank for each in a.top] == [1, 2, 3]


def test_both_engines_trace_the_same(engine: Live, reference: Live) -> None:
    """Every place of a prompt, of spans and of cubes; and the same again, where the cache holds the prompt."""
    ids = engine.chat(f"I went to Paris last week and liked it. {SUMS[0]} Please answer in German.")
    theirs, again, ours = (each.wait(each.engine.trace(ids, "t")) for each in (engine, engine, reference))
    assert [each.guard for each in theirs] == ["ksd-mathematics", "ksd-code", "ksd-en"]
    for other in theirs, again:
        for their, our in zip(other, ours, strict=True):
            for a, b in zip(their.parts, our.parts, strict=True):
                assert (a.label, a.tau, a.span) == (b.label, b.tau, b.span)
                assert a.score_T == pytest.approx(b.score_T, rel=1e-2)
    span = theirs[0].parts[0]
    assert span.span is not None
    assert "23 plus 58" in "".join(engine.engine.texts(ids)[span.span[0] : span.span[1] + 1])


def test_no_alternatives_where_none_are_asked_for(engine: Live, reference: Live) -> None:
    for live in engine, reference:
        sampling = greedy(max_tokens=1, logprobs=0, prompt_logprobs=0)
        (answer,) = live.draw([OTHERS[0]], sampling, [NOTHING])
        (drawn,) = answer.chunks[0].logprobs
        assert drawn.top == ()
        assert all(each.top == () for each in insides.told(answer))


def test_a_prompt_of_one_token(engine: Live) -> None:
    (answer,) = engine.draw([(300,)], insides.ASKS, [NOTHING])
    assert len(insides.told(answer)) == 1


def test_a_report_that_leaves_a_place_out_is_an_error(engine: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    take = engine.engine._take_prompt  # type: ignore[attr-defined]

    def fewer(answer: Any, prompt: PromptReport) -> None:
        take(answer, prompt._replace(judged=prompt.judged - 1))

    assert insides.told(engine.draw([OTHERS[0]], insides.ASKS, [NOTHING])[0]), "the positive control"
    monkeypatch.setattr(engine.engine, "_take_prompt", fewer)
    (answer,) = engine.draw([OTHERS[0]], insides.ASKS, [NOTHING])
    assert (answer.finish.reason, answer.chunks, answer.finish.verified) == (FinishReason.ERROR, (), False)


def test_no_report_is_an_error_where_anything_is_withheld(engine: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The front does not hear which places are withheld: what the worker sends then contradicts it."""
    monkeypatch.setattr(engine.engine, "_take_prompt", lambda *_: None)
    ids = insides.in_turns(engine)
    (answer,) = engine.draw([ids], insides.ASKS, [insides.MATHEMATICS_ONLY])
    assert (answer.finish.reason, answer.chunks) == (FinishReason.ERROR, ())
    assert engine.draw([ids], greedy(), [insides.MATHEMATICS_ONLY])[0].chunks


def test_reports_travel() -> None:
    prompt = PromptReport(7, ((2, (0.5, 1.0)),))
    params = StepReport(frozenset({"r"}), {}, {}, {"r": prompt}).params("r")
    assert load_prompt(params) == prompt
    assert load_report(params) is None
    assert load_prompt({}) is load_prompt(None) is None
