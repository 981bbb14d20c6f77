"""Neuron Adjust against its formula, and the authors' errors against it.

Suffixes: T tokens, F feed-forward width, S selected neurons.
"""

import math

import pytest
import torch
from scipy.stats import chisquare, norm
from torch import Tensor

from guards.errors import CalibrationError
from guards.methods.neuron_adjust.guard import (
    Adjuster,
    Draw,
    LayerStatistics,
    NeuronAdjustFitter,
    adjust,
    layer_key,
    log_density_difference,
    uniform,
)


def statistics(neurons: int = 1, *, forget: tuple[float, float], retain: tuple[float, float]) -> LayerStatistics:
    """Equal Gaussians, as (mean, standard deviation), for neurons 0, 1, 2, ..."""
    values = [torch.full((neurons,), value) for value in (*forget, *retain)]
    return LayerStatistics(torch.arange(neurons), *values)


def random_statistics(neurons: int) -> LayerStatistics:
    """Neurons with random Gaussians, the forget mean above the retain mean as selection leaves them."""
    retain_S = torch.randn(neurons)
    return LayerStatistics(
        torch.randperm(10_000)[:neurons],
        retain_S + torch.rand(neurons),
        0.2 + torch.rand(neurons),
        retain_S,
        0.2 + torch.rand(neurons),
    )


def apply(
    x_TS: Tensor,
    layer: LayerStatistics,
    *,
    draw: Draw = Draw.CERTAIN,
    positions_T: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """`adjust` at layer 3, with positions counted from 0 unless given."""
    positions_T = torch.arange(x_TS.shape[0]) if positions_T is None else positions_T
    return adjust(x_TS, layer, positions_T=positions_T, key=layer_key(3, seed), draw=draw)


def test_density_difference_is_the_logarithm_of_two_gaussians() -> None:
    layer, x_TS = random_statistics(40), torch.randn(30, 40)
    wanted = norm.logpdf(x_TS, layer.retain_mean_S, layer.retain_std_S) - norm.logpdf(
        x_TS, layer.forget_mean_S, layer.forget_std_S
    )
    torch.testing.assert_close(log_density_difference(x_TS, layer), torch.from_numpy(wanted).float())


def test_the_forget_mean_goes_to_the_retain_mean() -> None:
    layer = random_statistics(200)
    adjusted, moved = apply(layer.forget_mean_S[None], layer)
    assert bool(moved.any())
    torch.testing.assert_close(adjusted[moved], layer.retain_mean_S[moved[0]])


def test_a_value_is_mapped_to_the_retain_gaussian_and_reflected() -> None:
    """One deviation above the forget mean lands one retain deviation *below* the retain mean."""
    layer = statistics(forget=(4.0, 0.5), retain=(-1.0, 2.0))
    adjusted, moved = apply(torch.tensor([[4.5]]), layer)
    assert moved.item()
    assert adjusted.item() == pytest.approx(-3.0)


def test_a_value_that_looks_retained_stays_bit_for_bit() -> None:
    layer = random_statistics(100)
    x_TS = torch.randn(50, 100) * 2
    retained = log_density_difference(x_TS, layer) > 0
    for draw in Draw:
        adjusted, moved = apply(x_TS, layer, draw=draw)
        assert not bool((moved & retained).any())
        assert torch.equal(adjusted[~moved], x_TS[~moved])


def test_certain_shifts_exactly_where_forget_is_likelier() -> None:
    layer, x_TS = random_statistics(100), torch.randn(50, 100)
    _, moved = apply(x_TS, layer)
    assert torch.equal(moved, log_density_difference(x_TS, layer) <= 0)


@pytest.mark.parametrize("x", [0.5, 0.6, 0.8, 1.0, 1.5])
def test_rate_of_change_is_the_sigmoid(x: float) -> None:
    """Where D <= 0 a value moves with probability sigmoid(-D): counted over 40,000 positions and neurons."""
    layer = statistics(200, forget=(1.0, 1.0), retain=(0.0, 1.0))
    _, moved = apply(torch.full((200, 200), x), layer, draw=Draw.RANDOM)
    rate = 1 / (1 + math.exp(0.5 - x))  # D = .5 - x for unit Gaussians at 0 and 1
    error = math.sqrt(rate * (1 - rate) / moved.numel())
    assert float(moved.float().mean()) == pytest.approx(rate, abs=4 * error)


def test_forget_text_becomes_like_retain_text() -> None:
    """The claim: values drawn from the forget Gaussian come out with the retain mean."""
    layer = statistics(50, forget=(5.0, 1.0), retain=(0.0, 1.0))
    forget_TS, retain_TS = 5 + torch.randn(2000, 50), torch.randn(2000, 50)
    adjusted, _ = apply(forget_TS, layer, draw=Draw.RANDOM)
    untouched, _ = apply(retain_TS, layer, draw=Draw.RANDOM)
    assert abs(float(adjusted.mean())) < 0.05
    assert float(forget_TS.mean()) > 4.9  # positive control
    assert abs(float(untouched.mean())) < 0.05


def test_the_draw_depends_on_position_neuron_layer_and_seed_only() -> None:
    """Any batch and any tensor-parallel shard give the bits of the whole."""
    layer, x_TS = random_statistics(60), torch.randn(80, 60)
    whole, moved = apply(x_TS, layer, draw=Draw.RANDOM)
    order = torch.randperm(80)
    shuffled, _ = apply(x_TS[order], layer, draw=Draw.RANDOM, positions_T=order)
    assert torch.equal(shuffled, whole[order])
    rows = [apply(x_TS[i : i + 1], layer, draw=Draw.RANDOM, positions_T=torch.tensor([i]))[0] for i in range(80)]
    assert torch.equal(torch.cat(rows), whole)
    for ranks in (2, 3):
        shards = []
        for x, *fields in zip(x_TS.chunk(ranks, dim=1), *_chunks(layer, ranks), strict=True):
            shards.append(apply(x, LayerStatistics(*fields), draw=Draw.RANDOM)[0])
        assert torch.equal(torch.cat(shards, dim=1), whole)
    assert not torch.equal(apply(x_TS, layer, draw=Draw.RANDOM, seed=1)[1], moved)


def _chunks(layer: LayerStatistics, ranks: int) -> list[tuple[Tensor, ...]]:
    fields = (
        layer.neurons_S,
        layer.forget_mean_S,
        layer.forget_std_S,
        layer.retain_mean_S,
        layer.retain_std_S,
    )
    return [field.chunk(ranks) for field in fields]


def test_draws_are_uniform() -> None:
    """Chi-square over 64 bins for 2^18 draws, along positions, along neurons and over both."""
    many, one = torch.arange(1 << 18), torch.zeros(1, dtype=torch.int64)
    for draws in (
        uniform(many, one, layer_key(0, 0)),
        uniform(one, many, layer_key(0, 0)),
        uniform(torch.arange(512), torch.arange(512), layer_key(31, 1234567)),
        uniform(torch.arange(512), torch.arange(512), layer_key(0, -(2**63))),
        uniform(many + (1 << 40), one, layer_key(7, 2**63 - 1)),
    ):
        assert float(draws.min()) >= 0
        assert float(draws.max()) < 1
        counts = torch.histc(draws, bins=64, min=0, max=1)
        assert chisquare(counts.numpy()).pvalue > 1e-4


def test_draws_of_neighbours_are_independent() -> None:
    """Correlation between neighbouring positions, neurons, layers and seeds: five standard errors is 0.0098."""
    rows, columns = torch.arange(512), torch.arange(512)
    base = uniform(rows, columns, layer_key(5, 9))
    for other in (
        uniform(rows + 1, columns, layer_key(5, 9)),
        uniform(rows, columns + 1, layer_key(5, 9)),
        uniform(rows, columns, layer_key(6, 9)),
        uniform(rows, columns, layer_key(5, 10)),
        uniform(columns, rows, layer_key(5, 9)).T,
    ):
        stacked = torch.stack([base.flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(stacked)[0, 1])) < 0.0098


def test_draws_have_known_values() -> None:
    """Another engine or device must draw the same: splitmix64 written out in Python's integers."""

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    for position, neuron, layer, seed in [(0, 0, 0, 0), (17, 9041, 31, 42), (2**20, 14335, 79, -3)]:
        state = mix((seed + golden) % 2**64) + layer
        row = mix((state * golden + position) % 2**64)
        wanted = (mix((row * golden + neuron) % 2**64) >> 40) / (1 << 24)
        got = uniform(torch.tensor([position]), torch.tensor([neuron]), layer_key(layer, seed))
        assert float(got) == wanted


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_value_is_never_repaired(bad: float) -> None:
    adjusted, moved = apply(torch.full((4, 3), bad), statistics(3, forget=(1, 1), retain=(0, 1)))
    assert not bool(moved.any())
    assert not bool(torch.isfinite(adjusted).any())


def test_an_adjusted_value_that_overflows_is_invalid() -> None:
    """Reflected about a far retain mean: what is left is larger than float16 holds."""
    layer = statistics(2, forget=(3e4, 100.0), retain=(-6e4, 1e5))
    x_TF = torch.tensor([[3e4 + 32], [3e4 - 32], [3e4 + 32]]).expand(3, 2).half()
    act = Adjuster(layer, 0, 3, Draw.CERTAIN, 0)
    said_T = act(x_TF, torch.arange(3), torch.tensor([True, True, False]))[:, 0]
    assert torch.isfinite(x_TF).all(dim=1).tolist() == [False, True, True], "positive control"
    assert said_T.isnan().tolist() == [True, False, False]
    assert said_T[1:].tolist() == [2, 0]


def test_the_values_dtype_is_kept_and_the_arithmetic_is_float32() -> None:
    layer, x_TS = random_statistics(64), torch.randn(32, 64).bfloat16()
    adjusted, moved = apply(x_TS, layer)
    assert adjusted.dtype == torch.bfloat16
    wide, moved_wide = apply(x_TS.float(), layer)
    assert torch.equal(moved, moved_wide)
    assert torch.equal(adjusted, wide.bfloat16())


class TestFitter:
    """Statistics and selection."""

    def fitter(self) -> NeuronAdjustFitter:
        fitter = NeuronAdjustFitter(layers=2, width=5)
        offsets_F = torch.tensor([0.0, 3, -4, 1, 0])
        for layer in range(2):
            for piece in torch.split(torch.randn(400, 5) + offsets_F * (layer + 1), 90):
                fitter.update(layer, piece, forget=True)
            fitter.update(layer, torch.randn(400, 5), forget=False)
        return fitter

    def test_selection_is_signed_and_over_all_layers_together(self) -> None:
        guard = self.fitter().finish(0.3)  # int(.3 * 2 * 5) = 3
        chosen = {(layer, int(n)) for layer, s in guard.layers_statistics.items() for n in s.neurons_S}
        assert chosen == {(0, 1), (1, 1), (1, 3)}  # never neuron 2, whose mean fell

    @pytest.mark.parametrize(("fraction", "count"), [(0.1, 1), (0.2, 2), (0.99, 9), (1.0, 10)])
    def test_the_stated_number_is_selected(self, fraction: float, count: int) -> None:
        guard = self.fitter().finish(fraction)
        assert sum(s.neurons_S.numel() for s in guard.layers_statistics.values()) == count

    def test_a_layer_without_a_neuron_is_left_out(self) -> None:
        assert self.fitter().finish(0.1).layers == (1,)

    def test_statistics_are_those_of_the_data(self) -> None:
        forget_TF, retain_TF = torch.randn(300, 4) * 3 + 1, torch.randn(200, 4)
        fitter = NeuronAdjustFitter(layers=1, width=4)
        fitter.update(0, forget_TF, forget=True)
        fitter.update(0, retain_TF, forget=False)
        got = fitter.finish(1.0).layers_statistics[0]
        torch.testing.assert_close(got.forget_mean_S, forget_TF.mean(dim=0))
        torch.testing.assert_close(got.forget_std_S, forget_TF.std(dim=0))
        torch.testing.assert_close(got.retain_mean_S, retain_TF.mean(dim=0))
        torch.testing.assert_close(got.retain_std_S, retain_TF.std(dim=0))

    @pytest.mark.parametrize("fraction", [0.0, 0.05, -0.1, 1.5])
    def test_an_impossible_fraction_is_refused(self, fraction: float) -> None:
        with pytest.raises(CalibrationError, match="give one in"):
            self.fitter().finish(fraction)

    def test_an_empty_side_is_refused(self) -> None:
        fitter = NeuronAdjustFitter(layers=1, width=2)
        fitter.update(0, torch.randn(9, 2), forget=True)
        with pytest.raises(CalibrationError, match="fewer than 2 tokens"):
            fitter.finish(0.5)

    def test_a_non_finite_value_is_refused(self) -> None:
        with pytest.raises(CalibrationError, match="layer 0"):
            NeuronAdjustFitter(layers=1, width=2).update(0, torch.tensor([[0.0, torch.nan]]), forget=True)


class TestTheAuthorsErrors:
    """Each thing the released code does otherwise, and what the formula asks for."""

    def test_the_fitted_deviation_is_no_variance(self) -> None:
        """They store E[x^2] - E[x]^2 under the name "std"."""
        x_TF = torch.randn(5000, 1) * 3
        fitter = NeuronAdjustFitter(layers=1, width=1)
        fitter.update(0, x_TF, forget=True)
        fitter.update(0, x_TF, forget=False)
        got = float(fitter.finish(1.0).layers_statistics[0].forget_std_S)
        assert got == pytest.approx(3, rel=0.05)
        assert got != pytest.approx(float(x_TF.var()), rel=0.5)

    def test_neurons_with_a_negative_forget_mean_move(self) -> None:
        """They fill `std_forget` from `mean_forget`: below zero the density is negative and nothing ever moves."""
        layer = statistics(forget=(-1.0, 0.3), retain=(-3.0, 0.3))
        adjusted, moved = apply(torch.tensor([[-1.0]]), layer)
        assert moved.item()
        assert adjusted.item() == pytest.approx(-3.0)
        swapped = LayerStatistics(
            layer.neurons_S, layer.forget_mean_S, layer.forget_mean_S, layer.retain_mean_S, layer.retain_std_S
        )
        assert not bool(apply(torch.tensor([[-1.0]]), swapped)[1].any())

    def test_each_neuron_and_token_has_its_own_coin(self) -> None:
        """They draw one number per row of the batch, so that all neurons of a layer move together."""
        layer = statistics(400, forget=(1.0, 1.0), retain=(0.0, 1.0))
        _, moved_TS = apply(torch.full((50, 400), 1.0), layer, draw=Draw.RANDOM)
        by_token_T = moved_TS.float().mean(dim=1)
        by_neuron_S = moved_TS.float().mean(dim=0)
        assert bool(((by_token_T > 0.45) & (by_token_T < 0.8)).all())  # sigmoid(.5) = .62; 0 or 1 with one coin
        assert bool(((by_neuron_S > 0.3) & (by_neuron_S < 0.95)).all())

    def test_a_batch_above_one_works(self) -> None:
        """Theirs raises: the coin's shape is (batch,), the data's (batch, tokens, neurons)."""
        layer, x_TS = random_statistics(6), torch.randn(12, 6)
        positions_T = torch.arange(4).repeat(3)
        together, _ = apply(x_TS, layer, draw=Draw.RANDOM, positions_T=positions_T)
        for alone, wanted in zip(torch.split(x_TS, 4), torch.split(together, 4), strict=True):
            assert torch.equal(apply(alone, layer, draw=Draw.RANDOM)[0], wanted)
