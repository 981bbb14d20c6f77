"""Streaming moments, exact intervals, and thresholds that keep their promise on further examples."""

import pytest
import torch
from scipy.stats import beta

from guards.calibration.statistics import RunningMoments, auroc, clopper_pearson, conformal_tau


def test_streamed_moments_equal_one_shot() -> None:
    x_TF = torch.randn(1000, 7, dtype=torch.float64) * 3 + 5
    moments = RunningMoments(7)
    for piece in torch.split(x_TF, [1, 0, 17, 400, 582]):
        moments.update(piece)
    assert moments.count == 1000
    torch.testing.assert_close(moments.mean, x_TF.mean(dim=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.std(), x_TF.std(dim=0), rtol=1e-12, atol=0)


def test_moments_survive_a_large_mean_in_half_precision() -> None:
    """Sums of squares would lose every digit here: the mean is 1e4 times the deviation."""
    x_TF = (1e4 + torch.randn(4096, 3)).float()
    moments = RunningMoments(3)
    for piece in torch.split(x_TF, 64):
        moments.update(piece)
    torch.testing.assert_close(moments.std(), x_TF.double().std(dim=0), rtol=1e-9, atol=0)


def test_one_vector_has_no_deviation() -> None:
    moments = RunningMoments(2)
    moments.update(torch.ones(1, 2))
    assert moments.std().tolist() == [0, 0]


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (10, 10), (3, 10), (93, 100), (1, 1000)])
def test_clopper_pearson_is_the_beta_quantile(hits: int, total: int) -> None:
    low, high = clopper_pearson(hits, total)
    assert low == pytest.approx(beta.ppf(0.025, hits, total - hits + 1) if hits else 0, abs=1e-9)
    assert high == pytest.approx(beta.ppf(0.975, hits + 1, total - hits) if hits < total else 1, abs=1e-9)


def test_nothing_counted_says_nothing() -> None:
    assert clopper_pearson(0, 0) == (0, 1)


def test_conformal_tau_is_the_stated_rank() -> None:
    scores = torch.tensor([5.0, 1, 4, 2, 3, 9, 8, 7, 6])
    assert conformal_tau(scores, 0.5) == 5  # ceil(10 * .5) = 5th smallest
    assert conformal_tau(scores, 0.9) == 9
    assert conformal_tau(scores, 0.99) == 9  # nine scores cannot promise .99: the largest


@pytest.mark.parametrize("recall", [0.8, 0.95])
def test_conformal_tau_keeps_its_promise(recall: float) -> None:
    """Mean recall on fresh draws is at least what was asked for, at most 1 / (n + 1) above it."""
    got = []
    for _ in range(200):
        tau = conformal_tau(torch.randn(59).exp(), recall)
        got.append(float((torch.randn(500).exp() <= tau).float().mean()))
    mean = sum(got) / len(got)
    assert recall - 0.01 <= mean <= recall + 1 / 60 + 0.01  # 0.01: three standard errors of the mean


@pytest.mark.parametrize(("count", "recall"), [(0, 0.9), (3, 0.0), (3, 1.5)])
def test_conformal_tau_refuses_what_has_no_answer(count: int, recall: float) -> None:
    with pytest.raises(ValueError, match="conformal_tau"):
        conformal_tau(torch.ones(count), recall)


def test_auroc() -> None:
    forget, retain = torch.tensor([1.0, 2, 3]), torch.tensor([4.0, 5])
    assert auroc(forget, retain) == 1
    assert auroc(retain, forget) == 0
    assert auroc(forget, forget) == 0.5
    with pytest.raises(ValueError, match="both kinds"):
        auroc(forget, torch.tensor([]))
