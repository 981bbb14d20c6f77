"""What options do to one row's logits, by hand-made numbers."""

import random
from typing import Any

import pytest
import torch
from transformers import NoBadWordsLogitsProcessor

from server.engines.embedded.processors import BadWords, Steering, draw_token, steers
from server.engines.request import EngineRequest, Sampling

V, NONE = 8, -torch.inf
LOGITS = torch.tensor([2.0, -2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 4.0])
PROMPT = (0, 1)
STOPS = frozenset({7})


def adjusted(drawn: tuple[int, ...] = (), words: tuple[tuple[int, ...], ...] = (), **asked: Any) -> list[float]:
    sampling = Sampling(max_tokens=4, **asked)
    steering = Steering(EngineRequest("r", PROMPT, sampling), words, STOPS, None, torch.device("cpu"))
    for token in drawn:
        steering.take(token)
    row = LOGITS.clone()
    found: list[float] = steering.adjust(steering.constrain(row)).tolist()
    assert row.tolist() == LOGITS.tolist(), "what log-probabilities are taken of stays"
    return found


def but(**changes: float) -> list[float]:
    """The logits with some changed, by token."""
    return [changes.get(f"t{index}", value) for index, value in enumerate(LOGITS.tolist())]


def test_penalties() -> None:
    assert adjusted((2, 2, 3), presence_penalty=0.5) == but(t2=0.5, t3=-0.5)
    assert adjusted((2, 2, 3), frequency_penalty=0.5) == but(t2=0.0, t3=-0.5)
    assert adjusted((2,), presence_penalty=-1.0, frequency_penalty=-1.0) == but(t2=3.0)
    assert adjusted((2,), repetition_penalty=2.0) == but(t0=1.0, t1=-4.0, t2=0.5), "of the prompt's tokens too"


def test_what_may_come_next() -> None:
    assert adjusted(logit_bias={1: 5.0, 7: -100.0}) == but(t1=3.0, t7=-96.0)
    assert adjusted(allowed_token_ids=(1, 7)) == [NONE, -2.0, *[NONE] * 5, 4.0]
    words = ((7,), (2, 3), (0, 1, 5))
    assert adjusted((), words) == but(t7=NONE), "what the prompt ends in begins no word"
    assert adjusted((4, 2), words) == but(t7=NONE, t3=NONE)
    assert adjusted((0, 1), words) == but(t7=NONE, t5=NONE)


@pytest.mark.parametrize("longest", [1, 2, 5])
def test_bad_words_are_those_of_transformers(longest: int) -> None:
    rng = random.Random(longest)
    for length in (0, 1, 2, 3, 9):
        words = [[rng.randrange(3) for _ in range(rng.randint(1, longest))] for _ in range(12)]
        ids = torch.tensor([[rng.randrange(3) for _ in range(length)]], dtype=torch.int64)
        wanted = NoBadWordsLogitsProcessor(words)(ids, LOGITS[None])
        assert torch.equal(BadWords(words, torch.device("cpu"))(ids, LOGITS[None]), wanted)


def test_a_least_length() -> None:
    for drawn, value in ((), NONE), ((3,), NONE), ((3, 3), 4.0):
        assert adjusted(drawn, min_tokens=2) == but(t7=value)


def test_an_option_that_asks_for_nothing_needs_no_steering() -> None:
    assert not steers(Sampling(4, 0.5, 0.5, 3, ("a",), 5, top_k=3, min_p=0.5, ignore_eos=True, stop_token_ids=(3,)))
    for asked in (
        {"repetition_penalty": 1.1},
        {"presence_penalty": 1.0},
        {"frequency_penalty": -1.0},
        {"logit_bias": {3: 1.0}},
        {"allowed_token_ids": (3,)},
        {"bad_words": ("a",)},
        {"min_tokens": 1},
    ):
        assert steers(Sampling(4, **asked))


@pytest.mark.parametrize(
    ("asked", "possible"),
    [
        ({"top_k": 1}, {3}),
        ({"top_k": 2}, {2, 3}),
        ({"top_k": 100}, {0, 1, 2, 3}),
        ({"min_p": 1.0}, {3}),
        ({"min_p": 0.5}, {2, 3}),
        ({"min_p": 0.3}, {1, 2, 3}),
        ({"top_k": 3, "top_p": 0.5}, {2, 3}),
        ({"min_p": 0.2, "top_k": 3, "top_p": 0.4}, {3}),
        ({"min_p": 0.9, "temperature": 2.0}, {3}),
    ],
)
def test_what_can_be_drawn(asked: dict[str, Any], possible: set[int]) -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    sampling = Sampling(1, **{"temperature": 1.0, **asked})
    generator = torch.Generator().manual_seed(0)
    assert {draw_token(logits, sampling, generator) for _ in range(200)} == possible
