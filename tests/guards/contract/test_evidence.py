"""Evidence taken back out of readings: what went in comes out, by the engines' own strategies."""

import pytest
import torch
from torch import Tensor

from guards.calibration.accumulated import read_texts
from guards.contract.accumulate import TOKEN
from guards.contract.evidence import trace
from guards.contract.guard import Part
from guards.contract.spans import MessageMean, Rise
from guards.contract.turns import Turns, one_message
from guards.core.trace import PartTrace
from guards.errors import GuardReadingError

KAPPA, WEIGHT, SPAN_TAU, MEAN_TAU = 0.5, 2.0, 0.25, 0.4
STRATEGIES = (
    Rise(KAPPA, written=False),
    MessageMean(WEIGHT, written=False),
    Rise(KAPPA, written=True),
)
PARTS = tuple(Part(name, (1,), each) for name, each in zip(("span", "mean", "answer"), STRATEGIES, strict=True))
TAUS = (SPAN_TAU, MEAN_TAU, 0.1)


def conversation(*sizes: int) -> Turns:
    """Messages of so many tokens, asked and written in turn, each behind a token that opens it."""
    rows = []
    for index, size in enumerate(sizes):
        written = index % 2 == 1
        rows += [(False, True, index > 0, written), *[(True, False, False, written)] * size]
    return Turns(*torch.tensor(rows).T)


def readings(value_T: Tensor, turns: Turns) -> list[list[float]]:
    (read_TC,) = read_texts([value_T], [turns], STRATEGIES)
    return [list(map(float, row)) for row in read_TC]


def traced(value_T: Tensor, turns: Turns) -> tuple[PartTrace, PartTrace]:
    span, mean = trace(PARTS, TAUS, readings(value_T, turns), turns)
    return span, mean


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_the_evidence_that_went_in(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    turns = [one_message(torch.arange(60)), conversation(20, 9, 30), conversation(3, 2, 4, 50)][seed % 3]
    value_T = 0.4 + torch.randn(len(turns.counted), generator=generator)
    span, mean = traced(value_T, turns)
    counted = (turns.counted & ~turns.written).tolist()
    assert span.share_T is not None
    assert mean.share_T is not None
    for own, of_span, of_mean, value in zip(counted, span.share_T, mean.share_T, value_T.tolist(), strict=True):
        assert (of_span is not None, of_mean is not None) == (own, own)
        if own:
            assert of_span == pytest.approx((1 - value - KAPPA) / (1 / SPAN_TAU - 1), abs=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_a_span_has_all_that_it_takes_exactly_where_its_part_fires(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    turns = conversation(10, 5, 40)
    for part in traced(0.7 + torch.randn(58, generator=generator) * 0.8, turns):
        assert part.share_T is not None
        assert part.span is not None
        first, last = part.span
        held = sum(each or 0.0 for each in part.share_T[first : last + 1])
        assert (held >= 1) == (part.score_T[-1] <= part.tau)
        assert first > 16, "an earlier turn is not what is judged"


def test_the_span_is_the_stretch_that_speaks_for_the_skill() -> None:
    value_T = torch.ones(40)
    value_T[12:20] = -0.5
    span, mean = traced(value_T, one_message(torch.arange(40)))
    assert span.span == (12, 19)
    assert span.score_T[-1] <= SPAN_TAU
    assert mean.span == (1, 39), "all of the message but the first token of all"
    assert mean.score_T[-1] > MEAN_TAU


def test_nothing_speaks_for_the_skill() -> None:
    span, _ = traced(torch.full((9,), 2.0), one_message(torch.arange(9)))
    assert span.span is None


def test_only_parts_of_prompts_are_told() -> None:
    assert [part.label for part in traced(torch.ones(5), one_message(torch.arange(5)))] == ["span", "mean"]


def test_a_part_of_single_tokens_has_no_shares() -> None:
    turns = one_message(torch.arange(3))
    (part,) = trace((Part("cube", (1,), TOKEN),), (2.0,), [[5.0], [1.0], [3.0]], turns)
    assert part == PartTrace("cube", 2.0, (5.0, 1.0, 3.0), None, (2, 2))


def test_without_a_mean_evidence_is_not_told() -> None:
    turns = one_message(torch.arange(2))
    (part,) = trace(PARTS[:1], TAUS[:1], [[1.0], [0.5]], turns)
    assert (part.share_T, part.span) == (None, None)


def test_a_threshold_that_everything_meets_has_no_shares() -> None:
    turns = one_message(torch.arange(4))
    for tau in (1.0, 2.0):
        span, mean = trace(PARTS, (tau, tau, tau), readings(torch.zeros(4), turns), turns)
        assert (span.share_T, mean.share_T) == (None, None)
        assert span.span == (1, 3)


def test_readings_that_contradict_each_other_are_an_error() -> None:
    turns = one_message(torch.arange(30))
    rows = readings(torch.zeros(30), turns)
    trace(PARTS, TAUS, rows, turns)
    rows[20][0] *= 1.1
    with pytest.raises(GuardReadingError, match="token 20"):
        trace(PARTS, TAUS, rows, turns)
