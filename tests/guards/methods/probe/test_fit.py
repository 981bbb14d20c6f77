"""Probes against scikit-learn's own decision, planted directions, and how they are ranked and added."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from guards.calibration.corpus import Share, Side
from guards.contract.turns import Turns
from guards.errors import CalibrationError
from guards.methods.probe.fit import (
    ITERATIONS,
    Probe,
    Probes,
    dispersed_layers,
    fit_probe,
    fit_probes,
    measure,
)
from guards.methods.spans.examples import Example
from guards.methods.spans.guard import RIDGE, LayerWeights, Windows
from guards.methods.spans.held import Held
from guards.methods.spans.passes import last_token, windows_of

WIDTH = 24


def planted(count: int, direction_F: Tensor, shift: float, seed: int) -> Tensor:
    """Vectors of uneven scales, moved along one direction."""
    noise_NF = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return (noise_NF + shift * direction_F) * torch.logspace(-2, 2, WIDTH) + 5.0


def unit(seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)), dim=0)


def halves(*sides: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Every vector of a side counts the same, and a side one half."""
    return [(x_NF, torch.full((len(x_NF),), 0.5 / len(x_NF), dtype=torch.float64)) for x_NF in sides]


def windows(key_NF: dict[int, Tensor]) -> Windows:
    count = len(next(iter(key_NF.values())))
    return Windows(key_NF, torch.ones(count, dtype=torch.float64), torch.arange(count))


def fitted(*sides: Tensor) -> Probe:
    found = fit_probe(3, halves(*sides))
    assert found is not None
    return found


def value(term: LayerWeights, x_NF: Tensor) -> Tensor:
    return x_NF @ term.weight_F - term.offset


def test_folded_scales_decide_as_scikit_learn_does() -> None:
    """Its own pipeline, of a scaler and the regression, says how far a vector is from the boundary."""
    sides = planted(80, unit(0), -1.0, 1), planted(120, unit(0), 1.0, 2)
    share_N = np.concatenate([share_N.numpy() for _, share_N in halves(*sides)])
    x_NF, other_N = torch.cat(sides).double().numpy(), np.repeat([0, 1], [80, 120])
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (RIDGE * WIDTH), max_iter=ITERATIONS))
    weighted = {"standardscaler__sample_weight": share_N, "logisticregression__sample_weight": share_N}
    logit_N = pipeline.fit(x_NF, other_N, **weighted).decision_function(x_NF)
    probe = fitted(*sides)
    start = logit_N[:80].mean()
    np.testing.assert_allclose(probe.gap, logit_N[80:].mean() - start, rtol=2e-2)
    wanted = (logit_N - start) / (logit_N[80:].mean() - start)
    np.testing.assert_allclose(value(probe.term, torch.cat(sides)).numpy(), wanted, rtol=2e-2, atol=2e-2)


def test_a_planted_direction_is_found_and_means_are_zero_and_one() -> None:
    direction_F = unit(0)
    sides = planted(3000, direction_F, -2.0, 1), planted(3000, direction_F, 2.0, 2)
    probe = fitted(*sides)
    in_its_scale_F = probe.term.weight_F * torch.logspace(-2, 2, WIDTH)
    assert float(torch.nn.functional.cosine_similarity(in_its_scale_F, direction_F, dim=0)) > 0.95
    other_F = unit(9)
    assert abs(float(torch.nn.functional.cosine_similarity(in_its_scale_F, other_F, dim=0))) < 0.6, "positive control"
    means = [float(value(probe.term, side).mean()) for side in sides]
    assert means == pytest.approx([0, 1], abs=1e-4)


def test_a_dimension_that_never_moves_is_floored_and_counted() -> None:
    sides = [planted(60, unit(0), shift, seed) for shift, seed in ((-1.0, 1), (1.0, 2))]
    for side in sides:
        side[:, 4] = 7.0
    probe = fitted(*sides)
    assert probe.floored >= 1
    moved = torch.cat(sides)
    moved[:, 4] += 1
    assert bool(torch.isfinite(value(probe.term, moved)).all())


def test_sides_that_cannot_be_told_apart_have_no_probe() -> None:
    alike = planted(40, unit(0), 0.0, 1)
    assert fit_probe(0, halves(alike, alike.clone())) is None
    with pytest.raises(CalibrationError, match=r"no direction tells the sides apart at layers \[0\]"):
        fit_probes(windows({0: alike}), windows({0: alike.clone()}), (0,), count=3, windows=windows_of)


def test_a_layer_without_a_direction_is_left_out() -> None:
    alike = planted(40, unit(0), 0.0, 1)
    forget, retain = planted(40, unit(0), -2.0, 1), planted(40, unit(0), 2.0, 2)
    sides = windows({0: alike, 1: forget}), windows({0: alike.clone(), 1: retain})
    found = fit_probes(*sides, (0, 1), count=3, windows=windows_of)
    assert [each.term.layer for each in found.probes] == [1]


@pytest.mark.parametrize(("count", "layers"), [(1, (0,)), (2, (0, 1)), (12, tuple(range(12)))])
def test_layers_looked_at_are_of_the_whole_model(count: int, layers: tuple[int, ...]) -> None:
    assert dispersed_layers(count) == layers


def test_layers_looked_at_are_dispersed() -> None:
    layers = dispersed_layers(30)
    assert (layers[0], layers[-1], len(layers)) == (0, 29, 12)
    assert [sum(layer * 3 // 30 == third for layer in layers) for third in range(3)] == [4, 4, 4]


def test_what_a_probe_separates_is_measured_as_far_as_there_are_others() -> None:
    forget_N, retain_N = torch.linspace(-1, 0.1, 100), torch.linspace(0, 1, 2000)
    many, some, few = (measure(4, 12, forget_N, retain_N[::step]) for step in (1, 40, 200))
    assert (many.third, measure(0, 12, forget_N, retain_N).third, measure(11, 12, forget_N, retain_N).third) == (
        "middle",
        "early",
        "late",
    )
    assert many.log_auroc is not None
    assert 0.9 < many.log_auroc < 1
    assert some.log_auroc is not None
    assert few.log_auroc is None
    assert few.quality < some.quality, "what cannot be shown does not count"


def held(values: Sequence[tuple[Side, Tensor]]) -> Held:
    """Texts of one side each, by their values [T, C]."""
    examples = [Example(tuple(range(len(v))), side, Share.THRESHOLD, "s", "chat") for side, v in values]
    turns = []
    for _, value_TC in values:
        none_T = torch.zeros(len(value_TC), dtype=torch.bool)
        turns.append(Turns(~none_T, none_T, none_T, none_T))
    return Held(examples, turns, [value_TC for _, value_TC in values])


def ranked(qualities: Sequence[float], count: int) -> list[tuple[int, ...]]:
    """The layers of every candidate, of probes whose values of the skill lie so far below all others'."""
    draw = torch.Generator().manual_seed(0)
    noise = [torch.randn(1, len(qualities), generator=draw) for _ in range(800)]
    apart = torch.tensor(qualities)
    texts: list[tuple[Side, Tensor]] = [
        *(("forget", each - apart) for each in noise[:400]),
        *(("retain", each) for each in noise[400:]),
    ]
    probes = [Probe(LayerWeights(i, torch.ones(2), 1.0), -0.5, 1.0 + i, 0) for i in range(count)]
    found = Probes(probes, count, last_token).directions(held(texts))
    return [tuple(term.layer for term in each.terms) for each in found.candidates]


def test_the_best_of_every_third_are_taken() -> None:
    qualities = [3.0, 0.1, 2.0, 1.0, 1.0, 0.1, 4.0, 3.0, 2.0, 1.0, 5.0, 0.1]
    assert ranked(qualities, 12) == [(0, 6, 10), (0, 2, 6, 7, 8, 10), (0, 2, 3, 4, 6, 7, 8, 9, 10)]


def test_a_shallow_model_has_one_candidate() -> None:
    assert ranked([1.0, 1.0, 1.0], 3) == [(0, 1, 2)]


def test_together_logits_add_up() -> None:
    """Of values each share is its gap's, so that the sum of logits is 0 at the skill's mean and 1 at the others'."""
    terms = [LayerWeights(0, torch.tensor([1.0, 2.0]), 0.5), LayerWeights(2, torch.tensor([3.0, -1.0]), -0.25)]
    probes = Probes([Probe(terms[0], -1.5, 3.0, 0), Probe(terms[1], -0.5, 1.0, 0)], 3, last_token)
    texts = held([("forget", torch.zeros(1, 2)), ("retain", torch.ones(1, 2))])
    (direction,) = probes.directions(texts).candidates
    x = torch.tensor([0.7, -0.3])
    apart = torch.stack([value(term, x[None])[0] for term in terms])
    together = sum((value(term, x[None])[0] for term in direction.terms), torch.tensor(0.0))
    torch.testing.assert_close(together, (3 * apart[0] + apart[1]) / 4)
    torch.testing.assert_close(together, apart @ direction.share_C)


def test_held_out_windows_are_means_of_their_values() -> None:
    texts = held([("forget", torch.arange(6.0)[:, None]), ("retain", torch.full((3, 1), 9.0))])
    assert texts.windows(last_token, "forget").tolist() == [[5.0]]
    assert texts.windows(windows_of, "forget").tolist() == [[2.5]]
    assert texts.windows(last_token, "retain").tolist() == [[9.0]]
