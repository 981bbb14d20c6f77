"""Nothing that a request can ask for gets a token past a guard: the embedded engine on the demo.

Once with the demo's reserved sentinel, and once as on models without one, where the sentinel is the end-of-text token.
"""

from collections.abc import Iterator
from dataclasses import fields, replace

import pytest

from guards.core.policy import Policy
from guards.core.verdict import GuardMode, Scope, Stage
from server.engines.embedded import engine as module
from server.engines.errors import InvalidOptionError, PromptError, UnsupportedOptionError
from server.engines.events import FinishReason
from server.engines.request import EngineRequest, Message, Sampling
from tests.server.engines.vllm.live import OTHERS, SUMS, Answer, Live, embedded, greedy, live
from tests.server.engines.ways import END, VARIABLES, ways

pytestmark = pytest.mark.real
RESERVED = 6
SENTINELS = {"reserved": RESERVED, "end of text": END}
SHADOW = {"ksd-mathematics": GuardMode.SHADOW}


@pytest.fixture(scope="module", params=SENTINELS)
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[Live, int]]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "reserved":
            patch.setattr(module, "SENTINEL", "<|nothing|>")
        with live(embedded("ksd-mathematics")) as running:
            assert running.engine._sentinel == SENTINELS[request.param]  # type: ignore[attr-defined]
            yield running, SENTINELS[request.param]


def draw(live: Live, prompts: list[str], sampling: Sampling, policy: Policy) -> list[Answer]:
    """Answers under one policy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "policy", lambda _: policy)
        return live.draw(prompts, sampling)


def impossible(sampling: Sampling, sentinel: int) -> bool:
    """What is refused: nothing could be drawn."""
    return sentinel == RESERVED and sampling.allowed_token_ids == (RESERVED,)


@pytest.mark.parametrize("name", ways(END))
def test_no_option_gets_a_forgotten_answer_out(engine: tuple[Live, int], name: str) -> None:
    live, sentinel = engine
    sampling = ways(sentinel)[name]
    if impossible(sampling, sentinel):
        with pytest.raises(InvalidOptionError, match="which no answer holds"):
            live.draw(SUMS[:1], sampling)
        return
    prompts = [SUMS[0], SUMS[0], SUMS[1]]
    for answer in live.draw(prompts, sampling, [SHADOW] * 3):
        assert answer.chunks, "the positive control: tokens are drawn where the guard only watches"
        assert answer.finish.reason in (FinishReason.STOP, FinishReason.LENGTH)
        assert [hit.score.guard for hit in answer.finish.hits] == ["ksd-mathematics"]
    *guarded, other = live.draw([*prompts, OTHERS[0]], sampling)
    for answer in guarded:
        assert (answer.finish.reason, answer.chunks, answer.finish.completion_tokens) == (FinishReason.ABSTAIN, (), 0)
        assert answer.finish.abstained_on is not None
        assert answer.finish.abstained_on.score.stage is Stage.PROMPT
        assert answer.finish.verified
    assert other.finish.reason is not FinishReason.ERROR
    assert other.chunks


@pytest.mark.parametrize("name", ways(END))
def test_no_option_continues_past_a_hit_while_writing(engine: tuple[Live, int], name: str) -> None:
    """The guard fires at the second position: one token was drawn, and none after it."""
    live, sentinel = engine
    sampling = ways(sentinel)[name]
    if impossible(sampling, sentinel):
        return
    (guard,) = live.engine.info.guards
    everything = replace(guard.rule, scope=Scope.GENERATION, taus=tuple(1e30 for _ in guard.rule.taus))
    policy = Policy({guard.name: everything})
    (control,) = draw(live, [OTHERS[0]], sampling, policy.in_mode(GuardMode.SHADOW))
    for answer in draw(live, [OTHERS[0]] * 2, sampling, policy):
        if control.finish.completion_tokens == 1:
            assert answer.finish.completion_tokens == 1
            assert answer.finish.reason is control.finish.reason
            continue
        assert answer.finish.reason is FinishReason.ABSTAIN
        assert answer.finish.completion_tokens == sum(chunk.tokens for chunk in answer.chunks) == 1
        assert all(sentinel not in chunk.token_ids for chunk in answer.chunks) or sentinel == END


def test_every_option_is_tried() -> None:
    """An option that is added to Sampling must be tried, on both engines, before it can be sent."""
    neutral = Sampling(24, temperature=0)
    tried = {
        each.name
        for sampling in ways(END).values()
        for each in fields(Sampling)
        if getattr(sampling, each.name) != getattr(neutral, each.name)
    }
    assert tried == {each.name for each in fields(Sampling)}


def test_what_one_request_asks_for_changes_no_other(engine: tuple[Live, int]) -> None:
    live, sentinel = engine
    asked = {name: each for name, each in ways(sentinel).items() if not impossible(each, sentinel)}
    asked = {name: each for name, each in asked.items() if each.temperature == 0 or each.seed is not None}
    alone = {name: live.draw([OTHERS[0]], each)[0] for name, each in asked.items()}

    async def everyone() -> dict[str, str]:
        streams = {
            name: live.engine.submit(EngineRequest(f"crowd {name}", live.chat(OTHERS[0]), each))
            for name, each in asked.items()
        }
        return {
            name: "".join([getattr(event, "text", "") async for event in stream]) for name, stream in streams.items()
        }

    assert live.wait(everyone()) == {name: answer.text for name, answer in alone.items()}
    assert len({answer.text for answer in alone.values()}) > 10


@pytest.mark.parametrize("name", VARIABLES)
def test_no_template_variable_changes_what_is_judged(engine: tuple[Live, int], name: str) -> None:
    """It is refused, or the prompt is the same, which abstains."""
    live = engine[0]
    try:
        ids = live.engine.encode_chat([Message("user", SUMS[0])], (), VARIABLES[name])
    except (PromptError, UnsupportedOptionError):
        return
    assert ids == live.chat(SUMS[0])
    (answer,) = live.draw([ids], greedy())
    assert (answer.finish.reason, answer.chunks) == (FinishReason.ABSTAIN, ())
