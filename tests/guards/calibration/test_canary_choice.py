"""Which prompts become canaries: those whose verdict no engine of that dtype can turn over."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from guards.artifact.manifest import Canary
from guards.calibration.activations import TokenIds
from guards.calibration.canary_choice import CANARY_TRIES, choose_canaries
from guards.calibration.corpus import Corpus, Side
from guards.contract.spans import MessageMean
from guards.core.verdict import Reading
from guards.errors import CalibrationError
from guards.methods.registry import SELECTIVE_PRUNING, SPANS
from guards.methods.spans.guard import Judgement
from tests.guards.samples import IDENTITY, pruned, spans

TAU = 0.47


class Numbers:
    """Every text is a number, and that number is its one token."""

    def encode_text(self, text: str) -> TokenIds:
        return (int(text),)


class Scored:
    """A model that gives each prompt, known by its first token, the score it is told to."""

    def __init__(self, scores: Mapping[int, float], dtype: str) -> None:
        self.identity = IDENTITY.model_copy(update={"dtype": dtype})
        self.codec = Numbers()
        self._scores = scores

    @contextmanager
    def reading(self, method: object, guard: object) -> Iterator[Callable[[TokenIds], tuple[Reading, tuple[float]]]]:
        def read(ids: TokenIds) -> tuple[Reading, tuple[float]]:
            score = self._scores[ids[0]]
            return Reading.INSIDE if score <= TAU else Reading.OUTSIDE, (score,)

        yield read


def corpus(role: Side, *tokens: int) -> Corpus:
    encoded = {"bare": tuple((token,) for token in tokens)}
    return Corpus(role, (), tuple(map(str, tokens)), (0,) * len(tokens), encoded, 0)


def choose(
    forget: Mapping[int, float], retain: Mapping[int, float], dtype: str, guard: Any = None
) -> tuple[Canary, ...]:
    """Canaries of prompts of one token each: token -> score."""
    model: Any = Scored({**forget, **retain}, dtype)
    method = SPANS if guard is None else SELECTIVE_PRUNING
    sides = (corpus("forget", *forget), corpus("retain", *retain))
    return choose_canaries(
        model, method, guard or spans(judgements=(Judgement(MessageMean(1.0, written=False), TAU),)), *sides, ("bare",)
    )


@pytest.mark.parametrize(
    ("dtype", "tokens"), [("float32", [1, 2, 3, 6, 7, 8]), ("float16", [1, 2, 3, 6, 7, 8]), ("bfloat16", [1, 2, 7, 8])]
)
def test_what_is_clear_depends_on_the_dtype(dtype: str, tokens: list[int]) -> None:
    """In bfloat16 a score may drift by .05: 0.897 of tau, which is .4216, could be on its other side."""
    forget, retain = {1: 0.0, 2: 0.4, 3: 0.897 * TAU, 4: 0.95 * TAU}, {5: 1.05 * TAU, 6: 1.105 * TAU, 7: 0.53, 8: 1.0}
    assert [canary.token_ids[0] for canary in choose(forget, retain, dtype)] == tokens


def test_none_is_said_of_as_many_as_there_are() -> None:
    with pytest.raises(
        CalibrationError, match=r"none of 2 forget prompts, .* clearly fires .*another `layer`, `recall`"
    ):
        choose({1: 0.45, 2: 0.9}, {5: 1.0}, "float32")
    with pytest.raises(CalibrationError, match=r"none of 1 retain prompts, .* is clear of the guard"):
        choose({1: 0.0}, {5: 0.45}, "float32")
    many = dict.fromkeys(range(10, 20 + CANARY_TRIES), 0.9)
    with pytest.raises(CalibrationError, match=f"none of {CANARY_TRIES} forget prompts"):
        choose(many, {5: 1.0}, "float32")
    with pytest.raises(CalibrationError, match=r"none of 1 forget prompts, .* clearly fires .*or a larger `fraction`"):
        choose({1: 2.0}, {5: 40.0}, "float32", pruned())


def test_what_an_intervention_must_keep_need_not_be_shifted() -> None:
    assert [canary.token_ids[0] for canary in choose({1: 40.0}, {5: 2.0}, "float32", pruned())] == [1]


def test_the_text_that_ids_were_encoded_from_is_kept() -> None:
    canaries = choose({12: 0.0, 3: 0.4}, {7: 1.0}, "float32")
    assert [(canary.token_ids, canary.text, canary.messages) for canary in canaries] == [
        ((3,), "3", None),
        ((12,), "12", None),
        ((7,), "7", None),
    ]
