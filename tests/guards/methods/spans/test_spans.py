"""The direction over spans: what it is, and that serving computes it."""

import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from guards.contract.guard import OverRanks
from guards.errors import AttachError, CalibrationError
from guards.methods.spans import guard
from guards.methods.spans.guard import (
    EVEN,
    RIDGE,
    TEMPERATURE,
    DirectionFitter,
    LayerWeights,
    SpanBank,
    Windows,
    require_exact_products,
    softened,
)
from guards.methods.spans.stored import BoundSpans
from guards.model.shard import WHOLE, Shard
from guards.model.sites import Place, Site
from tests.guards.samples import JUDGEMENTS, spans
from tests.models import D_FF, LAYERS

WIDTH = 12
CPU = torch.device("cpu")


def windows(key_NF: Mapping[int, Tensor], weight_N: Tensor | None = None, text_N: Tensor | None = None) -> Windows:
    """Each of a text of its own where none is given."""
    count = len(next(iter(key_NF.values())))
    weight_N = torch.ones(count, dtype=torch.float64) if weight_N is None else weight_N
    return Windows(dict(key_NF), weight_N, torch.arange(count) if text_N is None else text_N)


def sides(seed: int = 0, forget: int = 60, retain: int = 90) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Two layers' vectors of two classes that differ in mean, with dependent dimensions."""
    generator = torch.Generator().manual_seed(seed)
    mix, found = torch.randn(WIDTH, WIDTH, generator=generator), []
    for count, shift in ((forget, 0.0), (retain, 0.7)):
        found.append({layer: torch.randn(count, WIDTH, generator=generator) @ mix + shift for layer in (1, 3)})
    return found[0], found[1]


def fitted(forget: Mapping[int, Tensor], retain: Mapping[int, Tensor], *layers: int) -> tuple[LayerWeights, ...]:
    return DirectionFitter(windows(forget), windows(retain)).finish(layers)


def values(terms: Sequence[LayerWeights], key_NF: Mapping[int, Tensor]) -> Tensor:
    """v of vectors, by definition."""
    return torch.stack([key_NF[term.layer] @ term.weight_F - term.offset for term in terms]).sum(dim=0)


def reference(forget: np.ndarray, retain: np.ndarray) -> np.ndarray:
    """Logistic regression by its definition in float64, scaled to 1 between the means."""
    means = forget.mean(0), retain.mean(0)
    within = (((forget - means[0]) ** 2).mean(0) + ((retain - means[1]) ** 2).mean(0)) / 2
    scale = np.sqrt(within)
    features = (np.concatenate([forget, retain]) - (means[0] + means[1]) / 2) / scale
    sign = np.repeat([1.0, -1.0], [len(forget), len(retain)])
    share = np.repeat([0.5 / len(forget), 0.5 / len(retain)], [len(forget), len(retain)])

    def loss(theta: np.ndarray) -> float:
        penalty = RIDGE * features.shape[1] / 2 * (theta[:-1] ** 2).sum()
        return float(share @ np.logaddexp(0, -sign * (features @ theta[:-1] + theta[-1])) + penalty)

    found = minimize(loss, np.zeros(features.shape[1] + 1), method="L-BFGS-B", options={"maxfun": 100_000}).x
    weight = found[:-1] / scale
    return np.asarray(weight / (weight @ (means[1] - means[0])))


@pytest.mark.parametrize("layers", [(1,), (3,), (1, 3)])
def test_it_is_the_logistic_regression(layers: tuple[int, ...]) -> None:
    forget, retain = sides()
    terms = fitted(forget, retain, *layers)
    stacked = [np.concatenate([side[layer].double().numpy() for layer in layers], axis=1) for side in (forget, retain)]
    got = np.concatenate([term.weight_F.numpy() for term in terms])
    np.testing.assert_allclose(got, reference(*stacked), rtol=2e-2, atol=2e-4)


def test_a_weight_is_as_many_vectors() -> None:
    """So that a source of few texts counts as much as one of many."""
    forget, retain = sides()
    twice = {layer: torch.cat([key_NF, key_NF[:20]]) for layer, key_NF in forget.items()}
    weight_N = torch.ones(60, dtype=torch.float64)
    weight_N[:20] = 2
    weighted = DirectionFitter(windows(forget, weight_N), windows(retain)).finish((1, 3))
    for got, wanted in zip(weighted, fitted(twice, retain, 1, 3), strict=True):
        torch.testing.assert_close(got.weight_F, wanted.weight_F, rtol=1e-2, atol=1e-3)
        assert got.offset == pytest.approx(wanted.offset, rel=1e-2)


def test_the_means_of_the_two_sides_are_zero_and_one() -> None:
    forget, retain = sides()
    terms = fitted(forget, retain, 1, 3)
    assert float(values(terms, forget).mean()) == pytest.approx(0, abs=1e-4)
    assert float(values(terms, retain).mean()) == pytest.approx(1, abs=1e-4)


def test_a_scale_of_a_dimension_changes_no_value() -> None:
    forget, retain = sides()
    before = values(fitted(forget, retain, 1), forget)
    for side in (forget, retain):
        side[1] = side[1] * torch.linspace(0.5, 20, WIDTH)
    torch.testing.assert_close(values(fitted(forget, retain, 1), forget), before, rtol=1e-3, atol=1e-3)


def test_a_dead_dimension_is_floored_and_counted() -> None:
    forget, retain = sides()
    for side in (forget, retain):
        side[1][:, 0] = 0.0
    fitter = DirectionFitter(windows(forget), windows(retain))
    assert fitter.floored == {1: 1, 3: 0}
    assert bool(torch.isfinite(values(fitter.finish((1,)), retain)).all())


def test_dimensions_are_prepared_a_few_at_a_time_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    forget, retain = sides()
    whole, seen = fitted(forget, retain, 1, 3), []
    moments = guard._moments

    def counted(chunk: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        seen.append(sum(key_NF.numel() * key_NF.element_size() for key_NF, _ in chunk))
        return moments(chunk)

    monkeypatch.setattr(guard, "_moments", counted)
    monkeypatch.setattr(guard, "CHUNK_BYTES", most := 5 * 8 * (60 + 90))
    for got, wanted in zip(fitted(forget, retain, 1, 3), whole, strict=True):
        assert torch.equal(got.weight_F, wanted.weight_F)
        assert got.offset == wanted.offset
    assert len(seen) == 2 * -(-WIDTH // 5)
    assert max(seen) == most


def test_a_fit_takes_the_vectors_that_it_is_given() -> None:
    """Both the vectors and what is made of them would be some GB of a large model."""
    given = [windows(side) for side in sides()]
    raw = [weakref.ref(key_NF) for side in given for key_NF in side.key_NF.values()]
    fitter = DirectionFitter(given[0], given[1])
    assert len(raw) == 4
    assert not any(each() is not None for each in raw)
    assert fitter.finish((1, 3))


def test_what_cannot_be_fitted_is_refused() -> None:
    forget, retain = sides()
    with pytest.raises(CalibrationError, match=r"got 1 window\(s\) of a side"):
        fitted({1: forget[1][:1]}, {1: retain[1]}, 1)
    with pytest.raises(CalibrationError, match="no direction tells the sides apart"):
        fitted({1: forget[1]}, {1: forget[1].clone()}, 1)
    retain[1][3, 3] = torch.inf
    with pytest.raises(CalibrationError, match="not finite"):
        fitted({1: forget[1]}, {1: retain[1]}, 1)


@pytest.mark.parametrize("found", [torch.nan, 0.0, -1.0])
def test_a_fit_that_finds_no_direction_makes_no_guard(found: float, monkeypatch: pytest.MonkeyPatch) -> None:
    forget, retain = sides()
    fitter = DirectionFitter(windows(forget), windows(retain))
    right_F = retain[1].mean(dim=0) - forget[1].mean(dim=0)
    monkeypatch.setattr(fitter, "_regress", lambda *_: (right_F * found,))
    with pytest.raises(CalibrationError, match="no direction tells the sides apart"):
        fitter.finish((1,))


def texts(skill: float, count: int, generator: torch.Generator) -> Tensor:
    """Texts of four windows with a common style; one window has `skill` in its own dimension, and less of the style."""
    key_EWF = torch.randn(count, 4, WIDTH, generator=generator)
    key_EWF[..., 0] += 1.5
    key_EWF[:, 0, 0] -= 1.0
    key_EWF[:, 0, 1] += skill
    return key_EWF.flatten(0, 1)


def test_windows_that_look_like_the_skill_count_most_within_their_text() -> None:
    """A near miss has all windows of the skill's texts but one: fitted evenly, the direction is that of the style."""
    generator = torch.Generator().manual_seed(3)
    forget, near = texts(4.0, 60, generator), texts(0.0, 60, generator)
    far = torch.randn(240, WIDTH, generator=generator)
    retain, text_N = torch.cat([near, far]), torch.arange(240) // 4

    def separation(texts_known: bool) -> float:
        """Of the most evidence of texts and of near misses, over its deviation."""
        own = (text_N, torch.cat([text_N, text_N + 60])) if texts_known else (None, None)
        fitter = DirectionFitter(windows({1: forget}, text_N=own[0]), windows({1: retain}, text_N=own[1]))
        terms = fitter.finish((1,))
        most = [(1 - values(terms, {1: side})).view(-1, 4).amax(dim=1) for side in (forget, near)]
        return float((most[0].mean() - most[1].mean()) / torch.cat([each - each.mean() for each in most]).std())

    assert separation(True) > 1.2 * separation(False)


def test_how_windows_count() -> None:
    weight_N = softened(torch.tensor([1.0, 0.0, 0.5, 0.5, -2.0]), torch.tensor([0, 0, 1, 1, 2]))
    part = 1 / (1 + np.exp(-1 / TEMPERATURE))
    wanted = [EVEN + (1 - EVEN) * 2 * part, EVEN + (1 - EVEN) * 2 * (1 - part), 1, 1, 1]
    np.testing.assert_allclose(weight_N.numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_served_values_add_up_to_the_directions(ranks: int) -> None:
    """Over ranks' slices and layers, the same for every judgement."""
    served = spans()
    keys = {layer: torch.randn(9, D_FF, generator=torch.Generator().manual_seed(layer)) for layer in served.layers}
    total_TP = torch.zeros(9, len(JUDGEMENTS))
    for rank in range(ranks):
        shard = Shard(rank, ranks)
        bound = BoundSpans(served, CPU, shard)
        assert {column.over_ranks for column in bound.columns} == {OverRanks.SUM}
        for layer in served.layers:
            total_TP += bound.at(Place(layer, Site.KEY), D_FF)(keys[layer][:, shard.columns(D_FF)])
    for part in range(len(JUDGEMENTS)):
        torch.testing.assert_close(total_TP[:, part], values(served.terms, keys), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_key_that_is_not_finite_gives_no_finite_value(bad: float) -> None:
    bank = BoundSpans(spans(), CPU, WHOLE).at(Place(LAYERS - 1, Site.KEY), D_FF)
    key_TF = torch.zeros(3, D_FF)
    key_TF[1, 2] = bad
    assert torch.isfinite(bank(key_TF)).all(dim=1).tolist() == [True, False, True]
    assert (
        SpanBank(torch.ones(1, 2), torch.zeros(1), [2])(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.float32
    )


def test_products_of_shorter_numbers_are_refused_where_there_are_such() -> None:
    cuda, before = torch.device("cuda"), torch.get_float32_matmul_precision()
    require_exact_products(cuda)
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.raises(AttachError, match="wanted 'highest'"):
            require_exact_products(cuda)
        require_exact_products(CPU)
    finally:
        torch.set_float32_matmul_precision(before)
