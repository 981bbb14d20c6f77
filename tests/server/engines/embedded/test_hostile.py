"""Values that the embedded engine cannot work with."""

from collections.abc import Iterator

import pytest

from guards.model.encoding import TextCodec
from server.engines.errors import InvalidOptionError
from server.engines.events import FinishReason
from server.engines.request import EngineRequest, Grammar, GrammarKind
from tests.server.engines.hostile import INVALID, refused
from tests.server.engines.vllm.live import OTHERS, Live, embedded, greedy, live

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def engine() -> Iterator[Live]:
    with live(embedded("ksd-mathematics")) as running:
        yield running


@pytest.mark.parametrize("name", INVALID)
def test_it_is_refused_and_the_others_go_on(engine: Live, name: str) -> None:
    refused(engine, name)
    assert engine.draw(OTHERS[:1], greedy(min_tokens=1))[0].finish.reason is FinishReason.STOP


def test_options_that_leave_no_token_end_their_answer_only(engine: Live) -> None:
    choice = Grammar(GrammarKind.CHOICE, '["a"]')
    answer = engine.draw(OTHERS[:1], greedy(grammar=choice, bad_words=("a",)))[0]
    assert answer.finish.reason is FinishReason.ERROR
    assert "leave no token" in (answer.finish.error or "")
    assert engine.draw(OTHERS[:1], greedy())[0].finish.reason is FinishReason.STOP


def test_bad_words_are_counted_before_they_are_encoded(engine: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = TextCodec.encode_part

    def counted(codec: TextCodec, text: str) -> tuple[int, ...]:
        encoded.append(text)
        return encode(codec, text)

    monkeypatch.setattr(TextCodec, "encode_part", counted)
    with pytest.raises(InvalidOptionError, match="got 1000 words"):
        engine.engine.prepare(greedy(bad_words=("word",) * 1000))
    assert encoded == []
    engine.engine.prepare(greedy(bad_words=("word",)))
    assert encoded, "positive control"


def test_what_takes_long_is_done_before_answers_begin(engine: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """`submit` is on the event loop, once for each of a request's answers."""
    encoded: list[str] = []
    encode = TextCodec.encode_part

    def counted(codec: TextCodec, text: str) -> tuple[int, ...]:
        encoded.append(text)
        return encode(codec, text)

    monkeypatch.setattr(TextCodec, "encode_part", counted)
    sampling = greedy(bad_words=("one", "two"))
    engine.engine.prepare(sampling)
    assert encoded, "positive control"
    encoded.clear()

    async def submit() -> None:
        for name in ("first", "second"):
            await engine.engine.submit(EngineRequest(name, engine.chat(OTHERS[0]), sampling)).aclose()

    engine.wait(submit())
    assert encoded == []
