"""Answers of many prompts, where the memory is less than the batch wants."""

from typing import Any

import pytest
import torch

from guards.calibration.activations import TokenIds
from guards.errors import CalibrationError
from guards.inside.transformers.loading import LoadedModel
from tests.guards.tiny import tiny_loaded
from tests.models import tokens

PROMPTS: list[TokenIds] = [tuple(tokens(n, seed=n).tolist()) for n in (5, 11, 3, 8, 2, 7, 6)]
ANSWER = 4


class Little:
    """A device that has room for so many tokens, prompts and answers together; `batches` are those that were tried."""

    def __init__(self, loaded: LoadedModel, room: int) -> None:
        self._generate, self._room = loaded.model.generate, room
        self.batches: list[tuple[int, int]] = []

    def __call__(self, input_ids: torch.Tensor, **settings: Any) -> Any:
        examples, longest = input_ids.shape
        self.batches.append((examples, longest + ANSWER))
        if examples * (longest + ANSWER) > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._generate(input_ids=input_ids, **settings)


def _little(monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel, room: int) -> Little:
    little = Little(loaded, room)
    monkeypatch.setattr(loaded.model, "generate", little)
    return little


def test_where_the_memory_is_too_little_fewer_are_answered_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded()
    done: list[int] = []
    wanted = loaded.write(PROMPTS, ANSWER)
    little = _little(monkeypatch, loaded, 40)
    assert loaded.write(PROMPTS, ANSWER, done.append) == wanted
    assert any(answer for answer in wanted)
    assert little.batches[0] == (7, 15), "positive control: all at once do not fit"
    assert sum(examples for examples, width in little.batches if examples * width <= 40) == len(PROMPTS)
    assert sum(done) == sum(len(each) + ANSWER for each in PROMPTS)


def test_a_prompt_that_does_not_fit_alone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded()
    little = _little(monkeypatch, loaded, 14)
    with pytest.raises(
        CalibrationError, match="out of memory with one prompt of 11 tokens and an answer of 4: give sho"
    ):
        loaded.write(PROMPTS, ANSWER)
    assert little.batches[-1] == (1, 15)
