"""Log-probabilities of prompts on the embedded engine."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from guards.core.verdict import Reading
from server.engines.embedded import sampler as module
from server.engines.embedded.answer_state import EmbeddedAnswerState
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.events import Chunk, Finish, FinishReason, PromptToken
from server.engines.request import EngineRequest, Sampling
from tests.server.engines import insides
from tests.server.engines.embedded.tiny_engine import Served, guarded, run, unguarded, watching
from tests.server.engines.vllm.live import Live, embedded, live

PROMPT = tuple(range(5, 45))


async def prompt_of(engine: EmbeddedEngine, ids: tuple[int, ...], name: str, **policy: Any) -> tuple[PromptToken, ...]:
    sampling = Sampling(max_tokens=3, temperature=0, prompt_logprobs=2)
    events = [event async for event in engine.submit(EngineRequest(name, ids, sampling, **policy))]
    first, *rest = events
    assert isinstance(first, Chunk)
    assert not any(isinstance(each, Chunk) and each.prompt for each in rest)
    return first.prompt


def expected(engine: EmbeddedEngine, ids: tuple[int, ...]) -> torch.Tensor:
    """The model's own log-probabilities, by a pass of all tokens at once."""
    with torch.no_grad():
        ids_BT = torch.tensor([ids], device=engine._loaded.device)
        logits = engine._loaded.model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return torch.as_tensor(engine._loaded.model.lm_head(logits)[0].log_softmax(dim=-1)).cpu()


@pytest.mark.parametrize("batch", [512, 16, 7])
def test_they_are_the_models_own(served: Served, batch: int) -> None:
    """In one pass or in parts, beside others, and where another request left the prompt's prefix in the cache."""
    options = unguarded(served).model_copy(update={"max_batch_tokens": batch})

    async def work(engine: EmbeddedEngine) -> None:
        wanted = expected(engine, PROMPT)
        async for _ in engine.submit(EngineRequest("before", PROMPT, Sampling(max_tokens=1, temperature=0))):
            pass
        beside = engine.submit(EngineRequest("beside", PROMPT[:20], Sampling(max_tokens=9, temperature=0)))
        both = await asyncio.gather(*(prompt_of(engine, PROMPT, f"r{index}") for index in range(2)))
        assert getattr([event async for event in beside][-1], "reason", None) is FinishReason.LENGTH
        for told in both:
            assert (len(told), told[0]) == (len(PROMPT), PromptToken())
            for at, each in enumerate(told[1:]):
                row = wanted[at]
                assert each.itself is not None
                assert each.itself.token_id == PROMPT[at + 1]
                assert each.itself.logprob == pytest.approx(float(row[PROMPT[at + 1]]), abs=1e-4)
                assert each.itself.rank == int((row > row[PROMPT[at + 1]]).sum()) + 1
                best = row.topk(2)
                assert [top.logprob for top in each.top] == pytest.approx(best.values.tolist(), abs=1e-4)
                assert [top.rank for top in each.top] == [1, 2]

    run(options, work)


def test_a_prompt_of_one_token(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> None:
        assert await prompt_of(engine, PROMPT[:1], "r") == (PromptToken(),)

    run(unguarded(served), work)


def test_a_place_without_a_reading_is_an_error(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positive control: with its reading, the same prompt is answered."""

    async def work(engine: EmbeddedEngine) -> None:
        policy = watching(engine)
        assert len(await prompt_of(engine, PROMPT, "control", policy=policy)) == len(PROMPT)
        judge = EmbeddedAnswerState.judge_prompt

        def forget(self: Any, facts: Any, position: int, readings: Any) -> bool:
            lost = dict.fromkeys(facts, (Reading.MISSING, ())) if position == 7 else readings
            return judge(self, facts, position, lost)

        monkeypatch.setattr(EmbeddedAnswerState, "judge_prompt", forget)
        sampling = Sampling(max_tokens=1, temperature=0, prompt_logprobs=2)
        events = [event async for event in engine.submit(EngineRequest("r", PROMPT, sampling, policy))]
        (finish,) = events
        assert isinstance(finish, Finish)
        assert (finish.reason, finish.verified) == (FinishReason.ERROR, False)

    run(guarded(served), work)


def test_a_place_that_is_not_withheld_and_not_told_is_an_error(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(engine: EmbeddedEngine) -> None:
        monkeypatch.setattr(module.JudgingSampler, "_prompt_token", lambda *_: PromptToken())
        sampling = Sampling(max_tokens=1, temperature=0, prompt_logprobs=2)
        events = [event async for event in engine.submit(EngineRequest("r", PROMPT, sampling))]
        assert isinstance(events[-1], Finish)
        assert events[-1].reason is FinishReason.ERROR
        assert len(events) == 1

    run(unguarded(served), work)


@pytest.fixture(scope="module")
def demo() -> Iterator[Live]:
    with live(embedded("ksd-mathematics")) as running:
        yield running


@pytest.mark.real
def test_nothing_is_told_that_single_requests_are_not(demo: Live) -> None:
    insides.as_single_requests(demo)


@pytest.mark.real
def test_a_refused_end_tells_nothing(demo: Live) -> None:
    insides.nothing_at_a_refused_end(demo)
