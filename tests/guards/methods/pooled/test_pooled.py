"""The pooled discriminant: what it is, and that serving computes it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from guards.contract.guard import OverRanks
from guards.errors import CalibrationError
from guards.methods.pooled.guard import SHRINKAGE, DiscriminantFitter, PooledBank, mean_scores
from guards.methods.pooled.stored import BoundPooled
from guards.model.shard import WHOLE, Shard
from guards.model.sites import Place, Site
from tests.guards.samples import pooled
from tests.models import D_FF, LAYERS

WIDTH = 12


def sides(seed: int = 0, forget: int = 60, retain: int = 90) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Two layers' vectors of two classes that differ in mean, with dependent dimensions."""
    generator = torch.Generator().manual_seed(seed)
    mix, found = torch.randn(WIDTH, WIDTH, generator=generator), []
    for count, shift in ((forget, 0.0), (retain, 0.7)):
        found.append({layer: torch.randn(count, WIDTH, generator=generator) @ mix + shift for layer in (1, 3)})
    return found[0], found[1]


def reference(forget: np.ndarray, retain: np.ndarray) -> np.ndarray:
    """Shrunk Fisher's discriminant by its definition, scaled to 1 between the means."""
    residuals = [side - side.mean(0) for side in (forget, retain)]
    within = sum(each.T @ each / len(each) for each in residuals) / 2
    scale = np.sqrt(np.diag(within))
    correlation = within / np.outer(scale, scale)
    shrunk = (1 - SHRINKAGE) * correlation + SHRINKAGE * np.eye(len(scale))
    gap = retain.mean(0) - forget.mean(0)
    weight = np.linalg.solve(shrunk, gap / scale) / scale
    return np.asarray(weight / (weight @ gap))


@pytest.mark.parametrize("layers", [(1,), (3,), (1, 3)])
def test_it_is_the_shrunk_discriminant(layers: tuple[int, ...]) -> None:
    forget, retain = sides()
    terms = DiscriminantFitter(forget, retain).finish(layers)
    stacked = [np.concatenate([side[layer].double().numpy() for layer in layers], axis=1) for side in (forget, retain)]
    got = np.concatenate([term.weight_F.numpy() for term in terms])
    np.testing.assert_allclose(got, reference(*stacked), rtol=1e-3, atol=1e-5)


def test_the_means_of_the_two_sides_score_zero_and_one() -> None:
    forget, retain = sides()
    terms = DiscriminantFitter(forget, retain).finish((1, 3))
    assert float(mean_scores(terms, forget).mean()) == pytest.approx(0, abs=1e-4)
    assert float(mean_scores(terms, retain).mean()) == pytest.approx(1, abs=1e-4)


def test_a_scale_of_a_dimension_changes_no_score() -> None:
    forget, retain = sides()
    terms = DiscriminantFitter(forget, retain).finish((1,))
    before = mean_scores(terms, forget)
    for side in (forget, retain):
        side[1] = side[1] * torch.linspace(0.5, 20, WIDTH)
    after = mean_scores(DiscriminantFitter(forget, retain).finish((1,)), forget)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_a_dead_dimension_is_floored_and_counted() -> None:
    forget, retain = sides()
    for side in (forget, retain):
        side[1][:, 0] = 0.0
    fitter = DiscriminantFitter(forget, retain)
    assert fitter.floored((1, 3)) == 1
    assert bool(torch.isfinite(mean_scores(fitter.finish((1,)), retain)).all())


def test_what_cannot_be_fitted_is_refused() -> None:
    forget, retain = sides()
    with pytest.raises(CalibrationError, match="got 1 mean key vector"):
        DiscriminantFitter({1: forget[1][:1]}, {1: retain[1]})
    with pytest.raises(CalibrationError, match="same mean key vector"):
        DiscriminantFitter({1: forget[1]}, {1: forget[1].clone()}).finish((1,))
    retain[1][3, 3] = torch.inf
    with pytest.raises(CalibrationError, match="not finite"):
        DiscriminantFitter({1: forget[1]}, {1: retain[1]})


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_mean_of_served_values_is_the_score_of_the_mean(ranks: int) -> None:
    """Over ranks' slices the values add up; of 16-bit keys too they are float32."""
    guard = pooled()
    keys = {layer: torch.randn(9, D_FF, generator=torch.Generator().manual_seed(layer)) for layer in guard.layers}
    wanted = mean_scores(guard.terms, {layer: key_TF.mean(dim=0, keepdim=True) for layer, key_TF in keys.items()})
    total = torch.zeros(9, 1)
    for rank in range(ranks):
        shard = Shard(rank, ranks)
        bound = BoundPooled(guard, torch.device("cpu"), shard)
        assert {(column.part, column.over_ranks) for column in bound.columns} == {(0, OverRanks.SUM)}
        for layer in guard.layers:
            total += bound.at(Place(layer, Site.KEY), D_FF)(keys[layer][:, shard.columns(D_FF)])
    torch.testing.assert_close(total.mean(), wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_key_that_is_not_finite_gives_no_finite_value(bad: float) -> None:
    bank = BoundPooled(pooled(), torch.device("cpu"), WHOLE).at(Place(LAYERS - 1, Site.KEY), D_FF)
    key_TF = torch.zeros(3, D_FF)
    key_TF[1, 2] = bad
    assert torch.isfinite(bank(key_TF)).flatten().tolist() == [True, False, True]
    assert PooledBank(torch.ones(2), torch.tensor(0.0))(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.float32
