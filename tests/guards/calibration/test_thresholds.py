"""Thresholds keep their promises on examples they were not chosen on."""

from collections.abc import Callable

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from guards.calibration.statistics import conformal_tau
from guards.calibration.thresholds import (
    below,
    enough_for_cap,
    false_abstention_bound,
    hits,
    joint_scale,
    margin,
    place_tau,
    rate_of,
    tolerated,
    too_few_for_cap,
)

TRIALS = 3000


def _mean(threshold: Callable[[Tensor], float], examples: int) -> float:
    """Mean threshold over samples of a uniform population, where it is the share of new examples at or below it."""
    generator = torch.Generator().manual_seed(0)
    return sum(threshold(torch.rand(examples, generator=generator)) for _ in range(TRIALS)) / TRIALS


@pytest.mark.parametrize(("examples", "recall"), [(19, 0.9), (50, 0.9), (116, 0.95)])
def test_coverage_of_a_further_forget_example(examples: int, recall: float) -> None:
    coverage = _mean(lambda sample: conformal_tau(sample, recall), examples)
    # Exact: between recall and recall + 1 / (n + 1); the simulation's error is below 0.003.
    assert recall - 0.003 <= coverage <= recall + 1 / (examples + 1) + 0.003
    # Positive control: the plain sample quantile falls short.
    plain = _mean(lambda sample: float(sample.sort().values[int(recall * examples) - 1]), examples)
    assert plain < recall - 0.003


@pytest.mark.parametrize(("examples", "cap"), [(99, 0.01), (150, 0.02), (40, 0.1)])
def test_false_abstention_on_a_further_retain_example(examples: int, cap: float) -> None:
    share = _mean(lambda sample: false_abstention_bound(sample, cap), examples)
    assert cap - 1 / (examples + 1) - 0.003 <= share <= cap + 0.001


def test_the_bound_is_strict_and_float32() -> None:
    retain = torch.tensor([3.0, 1.0, 2.0, 5.0])
    bound = false_abstention_bound(retain, 0.4)
    assert bound == below(2.0) < 2.0
    assert int((retain <= bound).sum()) == 1
    assert float(torch.tensor(bound, dtype=torch.float32)) == bound
    assert below(0.1) < 0.1
    none = false_abstention_bound(retain, 0.0)
    assert int((retain <= none).sum()) == 0


def test_tau_lies_between_what_the_recall_needs_and_what_the_cap_allows() -> None:
    assert place_tau(1.0, 4.0, "middle") == below(2.0)
    assert place_tau(1.0, 4.0, "tight") == 1.0
    assert place_tau(4.0, 1.0, "middle") == 1.0, "the cap wins"


@pytest.mark.parametrize(("examples", "cap", "enough"), [(99, 0.01, True), (98, 0.01, False), (500, 0.0, False)])
def test_says_when_the_cap_cannot_be_shown(examples: int, cap: float, enough: bool) -> None:
    assert enough_for_cap(examples, cap) is enough
    said = too_few_for_cap(examples, cap, "texts")
    assert said == [] if enough else f"{examples} texts" in said[0]
    assert enough or ("which takes 99;" if cap else "which no number can;") in said[0]


def test_margin_is_negative_where_recall_and_cap_cannot_both_be_had() -> None:
    forget = torch.linspace(1, 2, 99)
    assert margin(forget, 4.0, recall=0.9) > 0
    assert margin(forget, 1.5, recall=0.9) < 0


def test_several_cubes_together_keep_the_cap_in_every_frame() -> None:
    generator = torch.Generator().manual_seed(3)
    cap, examples = 0.05, 400
    frames = [torch.rand((3, examples), generator=generator) + 0.5 for _ in range(3)]
    alone = [min(false_abstention_bound(scores[c], cap) for scores in frames) for c in range(3)]
    together = [float(hits(scores, alone).float().mean()) for scores in frames]
    assert max(together) > cap, "positive control: each cube keeps the cap, their union does not"
    scale = joint_scale(frames, alone, cap)
    assert scale < 1
    scaled = [below(tau * scale) for tau in alone]
    assert all(float(hits(scores, scaled).float().mean()) <= cap for scores in frames)
    assert joint_scale(frames, [tau * 0.1 for tau in alone], cap) == 1.0


def test_rates_have_exact_intervals() -> None:
    rate = rate_of(torch.tensor([True] * 3 + [False] * 7))
    assert (rate.hits, rate.total, rate.rate) == (3, 10, 0.3)
    assert rate.low == pytest.approx(0.0667, abs=1e-3)
    assert rate.high == pytest.approx(0.6525, abs=1e-3)


@pytest.mark.parametrize(("examples", "cap", "hits"), [(0, 0.1, 0), (40, 0.0, 0), (40, 0.0025, 1), (40, 0.1, 8)])
def test_one_outlier_contradicts_no_rate_and_many_do(examples: int, cap: float, hits: int) -> None:
    assert tolerated(examples, cap) == hits
    if examples:
        assert binomtest(hits + 1, examples).proportion_ci().low > cap
