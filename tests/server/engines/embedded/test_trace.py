"""What guards read along a prompt, on the embedded engine: as of prompts that end at each token."""

import asyncio
from pathlib import Path

import pytest

from server.engines.embedded.engine import EmbeddedEngine
from server.engines.options import EmbeddedOptions
from server.engines.request import Message
from tests.server.engines.embedded.tiny_engine import run, unguarded
from tests.server.engines.vllm.live import GUARDS, MODEL

pytestmark = pytest.mark.real

QUESTION = "I went to Paris last week. What is 23 plus 58? Please answer in German."
DETECTORS = ("ksd-mathematics", "ksd-de")


def demo(*names: str) -> EmbeddedOptions:
    return EmbeddedOptions(model=str(MODEL), artifacts=tuple(GUARDS / name for name in names))


@pytest.mark.parametrize("batch", [512, 7])
def test_each_place_is_as_the_end_of_a_prompt(batch: int) -> None:
    """In one pass and in parts; beside each other, and where the cache holds the prompt already."""

    async def work(engine: EmbeddedEngine) -> None:
        ids = engine.encode_chat([Message("user", QUESTION)])
        await engine.check(ids, "before")
        first, again = await asyncio.gather(engine.trace(ids, "t"), engine.trace(ids, "t"))
        for one, other in zip(first, again, strict=True):
            for part, same in zip(one.parts, other.parts, strict=True):
                assert part.score_T == pytest.approx(same.score_T, rel=1e-3)
                assert part.span == same.span
        assert [each.guard for each in first] == ["ksd-mathematics", "ksd-de"], "an intervention judges nothing"
        for end in (1, 9, 20, len(ids)):
            read = await engine.read(ids[:end], "r")
            for each in first:
                own = read[each.guard][1][: len(each.parts)]
                assert [part.score_T[end - 1] for part in each.parts] == pytest.approx(own, rel=1e-3)

    run(demo(*DETECTORS, "na-mathematics").model_copy(update={"max_batch_tokens": batch}), work)


def test_the_question_is_the_span() -> None:
    async def work(engine: EmbeddedEngine) -> None:
        ids = engine.encode_chat([Message("user", QUESTION)])
        (span, *_), _ = (each.parts for each in await engine.trace(ids, "t"))
        assert span.span is not None
        first, last = span.span
        text = "".join(engine.texts(ids)[first : last + 1])
        assert "23 plus 58" in text
        assert "Paris" not in text
        assert span.score_T[-1] <= span.tau

    run(demo(*DETECTORS), work)


def test_a_refused_question_of_an_earlier_turn_is_not_the_span() -> None:
    async def work(engine: EmbeddedEngine) -> None:
        said = [Message("user", "What is 3 plus 5?"), Message("assistant", "8"), Message("user", "Hello, how are you?")]
        ids = engine.encode_chat(said)
        (span, mean), _ = (each.parts for each in await engine.trace(ids, "t"))
        texts = engine.texts(ids)
        assert mean.span is not None
        assert "".join(texts[mean.span[0] : mean.span[1] + 1]) == "Hello, how are you?"
        assert span.span is None or span.span[0] >= mean.span[0]

    run(demo(*DETECTORS), work)


def test_where_a_conversation_is_judged_whole_the_span_may_be_of_an_earlier_turn() -> None:
    async def work(engine: EmbeddedEngine) -> None:
        said = [Message("user", QUESTION), Message("assistant", "81"), Message("user", "Hello, how are you?")]
        ids = engine.encode_chat(said)
        (span, _), _ = (each.parts for each in await engine.trace(ids, "t"))
        assert span.span is not None
        assert "23 plus 58" in "".join(engine.texts(ids)[span.span[0] : span.span[1] + 1])

    run(demo(*DETECTORS).model_copy(update={"judge": "conversation"}), work)


def test_prompts_of_one_token_and_no_guards(tmp_path: Path) -> None:
    async def one(engine: EmbeddedEngine) -> None:
        traces = await engine.trace((300,), "t")
        assert [len(part.score_T) for each in traces for part in each.parts] == [1, 1, 1, 1]

    async def none(engine: EmbeddedEngine) -> None:
        assert await engine.trace((300, 301), "t") == ()

    run(demo(*DETECTORS), one)
    run(unguarded((MODEL, tmp_path, tmp_path)), none)
