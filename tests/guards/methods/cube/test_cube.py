"""Key Space Detection against its formula, and against what the authors' code does.

Suffixes: T tokens, F feed-forward width.
"""

import math

import pytest
import torch
from torch import Tensor

from guards.calibration.statistics import SIGMA_FLOOR_ABS, SIGMA_FLOOR_REL, conformal_tau, floor_sigma
from guards.errors import CalibrationError
from guards.methods.cube.guard import Cube, CubeFitter, cube_score


def fit(key_TF: Tensor, pieces: int = 1) -> Cube:
    """A cube fitted on vectors given in so many updates."""
    fitter = CubeFitter(key_TF.shape[1])
    for piece in key_TF.chunk(pieces):
        fitter.update(piece)
    return fitter.finish(layer=0, frame="bare")


def score(key_TF: Tensor, cube: Cube) -> Tensor:
    """s(x) of every vector."""
    return cube_score(key_TF, cube.mean_F, cube.std_F.reciprocal())


def bisect(key_TF: Tensor, mean_F: Tensor, std_F: Tensor) -> float:
    """The authors' k: the scale in [0, 10000] at which mean +- k std first holds every vector, to 1e-5."""
    low, high = 0.0, 10_000.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        holds = bool(((key_TF - mean_F).abs() <= middle * std_F).all())
        low, high = (low, middle) if holds else (middle, high)
    return high


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_calibration_vector_is_inside_at_alpha_one(dtype: torch.dtype) -> None:
    """Bit for bit: the vector that sets k must not fall outside by a rounding."""
    for seed in range(50):
        key_TF = torch.randn(64, 96, generator=torch.Generator().manual_seed(seed)).to(dtype)
        cube = fit(key_TF)
        assert cube.tau == cube.k
        assert bool((score(key_TF, cube) <= cube.tau).all())


def test_a_vector_of_another_skill_is_outside() -> None:
    """Positive control: the same score that holds the skill's vectors keeps others out."""
    forget_TF, other_TF = torch.randn(400, 64), torch.randn(100, 64) + 12
    cube = fit(forget_TF)
    assert bool((score(other_TF, cube) > cube.tau).all())


def test_closed_form_equals_the_authors_bisection() -> None:
    for seed in range(5):
        key_TF = torch.randn(60, 40, generator=torch.Generator().manual_seed(seed)).double().exp().float()
        cube = fit(key_TF)
        mean_F, std_F = key_TF.double().mean(dim=0), key_TF.double().std(dim=0)
        # 1e-5 is the bisection's tolerance, 1e-6 relative is float32's share.
        assert cube.k == pytest.approx(bisect(key_TF.double(), mean_F, std_F), rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_k_is_bounded_by_the_count(n: int) -> None:
    """k <= (n-1)/sqrt(n), reached when one vector differs from all others."""
    bound = (n - 1) / math.sqrt(n)
    for seed in range(20):
        key_TF = torch.randn(n, 30, generator=torch.Generator().manual_seed(seed)) ** 3
        assert fit(key_TF).k <= bound * (1 + 1e-6)
    spike_TF = torch.zeros(n, 1)
    spike_TF[0] = 1.0
    assert fit(spike_TF).k == pytest.approx(bound, rel=1e-6)


def test_sharded_maximum_equals_unsharded() -> None:
    """Tensor parallelism: each rank holds a slice of the neurons, and one MAX over ranks gives the score."""
    key_TF, cube = torch.randn(50, 96), fit(torch.randn(200, 96))
    whole = score(key_TF, cube)
    for ranks in (2, 3, 8):
        pieces = [piece.chunk(ranks, dim=-1) for piece in (key_TF, cube.mean_F, cube.std_F.reciprocal())]
        parts = torch.stack([cube_score(*piece) for piece in zip(*pieces, strict=True)])
        assert torch.equal(parts.amax(dim=0), whole)


def test_streaming_equals_one_shot() -> None:
    key_TF = torch.randn(300, 32)
    one, many = fit(key_TF), fit(key_TF, pieces=7)
    torch.testing.assert_close(one.mean_F, many.mean_F)
    torch.testing.assert_close(one.std_F, many.std_F)
    assert one.k == pytest.approx(many.k, rel=1e-6)


def test_scaling_a_dimension_changes_nothing() -> None:
    """Powers of two scale exactly, so scores are equal bit for bit."""
    key_TF = torch.randn(100, 16)
    scale_F = 2.0 ** torch.randint(-6, 7, (16,))
    plain, scaled = fit(key_TF), fit(key_TF * scale_F)
    assert torch.equal(score(key_TF, plain), score(key_TF * scale_F, scaled))


def test_the_sample_deviation_is_used() -> None:
    key_TF = torch.tensor([[0.0], [2.0]])
    assert float(fit(key_TF).std_F) == pytest.approx(math.sqrt(2))  # ddof 1; ddof 0 would give 1


def test_a_dead_dimension_does_not_veto() -> None:
    """Trap (b): a neuron that was constant in calibration would keep every query outside by a hair."""
    key_TF = torch.randn(500, 32)
    key_TF[:, 5] = 0
    cube = fit(key_TF)
    query_F = key_TF[3].clone()
    query_F[5] = 1e-3
    assert float(score(query_F[None], cube)) <= cube.tau
    raw_F = key_TF.std(dim=0).clamp_min(1e-12)
    assert float(cube_score(query_F[None], cube.mean_F, raw_F.reciprocal())) > cube.tau


def test_sigma_floor_counts_what_it_raised() -> None:
    floored_F, raised = floor_sigma(torch.tensor([0.0, 1e-9, 1, 1, 2]))
    assert raised == 2
    assert float(floored_F.min()) == pytest.approx(SIGMA_FLOOR_REL)
    assert floor_sigma(torch.zeros(3))[0].tolist() == pytest.approx([SIGMA_FLOOR_ABS] * 3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_key_never_scores_small(bad: float) -> None:
    """Trap (d): `max` skips a NaN when it is written as a comparison."""
    cube = fit(torch.randn(50, 8))
    key_TF = torch.zeros(1, 8)
    for column in range(8):
        broken_TF = key_TF.clone()
        broken_TF[0, column] = bad
        assert not bool(torch.isfinite(score(broken_TF, cube)).any())


def test_scores_are_float32_of_a_half_precision_key() -> None:
    """Trap (c): casting mu, sigma and k to bfloat16, as the authors do, moves the score by up to a percent."""
    key_TF, cube = torch.randn(200, 512).bfloat16(), fit(torch.randn(400, 512))
    exact = score(key_TF, cube)
    assert exact.dtype == torch.float32
    reference = ((key_TF.double() - cube.mean_F.double()) / cube.std_F.double()).abs().amax(dim=-1)
    torch.testing.assert_close(exact.double(), reference, rtol=1e-6, atol=0)
    halved = ((key_TF - cube.mean_F.bfloat16()) / cube.std_F.bfloat16()).abs().amax(dim=-1)
    assert float((halved.float() / exact - 1).abs().max()) > 1e-3


def test_too_few_vectors_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"got 1 key vector\(s\), wanted at least 2"):
        fit(torch.randn(1, 4))
    with pytest.raises(CalibrationError, match="got 0"):
        fit(torch.randn(0, 4))


def test_equal_vectors_are_refused() -> None:
    with pytest.raises(CalibrationError, match="the same"):
        fit(torch.ones(10, 4))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_fitting_a_non_finite_vector_is_refused(bad: float) -> None:
    with pytest.raises(CalibrationError, match="not finite"):
        fit(torch.full((3, 4), bad))


def gated_keys(n: int, generator: torch.Generator) -> Tensor:
    """Synthetic keys of a gated layer, silu(gate) * up: heavier tails than a Gaussian's."""
    gate_TF, up_TF = torch.randn(2, n, 4096, generator=generator).unbind()
    return gate_TF * gate_TF.sigmoid() * up_TF


def test_coverage_of_held_out_vectors_is_optimistic_and_split_conformal_is_not() -> None:
    """Trap (a): the cube of n vectors holds all n of them at alpha 1, and next to none of the next ones."""
    generator = torch.Generator().manual_seed(0)
    fresh_TF = gated_keys(300, generator)

    def coverage(cube: Cube, tau: float) -> float:
        return float((score(fresh_TF, cube) <= tau).float().mean())

    few, more = fit(gated_keys(100, generator)), fit(gated_keys(374, generator))
    assert coverage(few, few.k) < 0.2
    assert coverage(few, few.k) + 0.3 < coverage(more, more.k) < 0.99

    tau = conformal_tau(score(gated_keys(100, generator), few), recall=0.9)
    assert coverage(few, tau) > 0.8  # .9 less three standard errors of 100 and 300 draws
