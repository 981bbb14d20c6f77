"""Values that the embedded engine cannot work with."""

from collections.abc import Iterator

import pytest

from server.engines.base import FinishReason, Grammar, GrammarKind
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
