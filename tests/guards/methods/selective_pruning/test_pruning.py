"""Selective Pruning against numpy and its formula.

Suffixes: T tokens, L layers, F neurons of a layer.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from guards.calibration.selection import top_neurons
from guards.errors import AttachError, CalibrationError
from guards.methods.selective_pruning.guard import EPSILON, Importance, ImportanceSums, Pruner, PruningFitter
from guards.methods.selective_pruning.stored import BoundPruning
from guards.model.shard import WHOLE, Shard
from guards.model.sites import Place, Site
from tests.guards.samples import pruned
from tests.models import D_FF, D_MODEL


def summed(*batches: Tensor) -> ImportanceSums:
    sums = ImportanceSums(batches[0].shape[1])
    for batch in batches:
        sums.update(batch)
    return sums


def fitter(layers: int = 3, width: int = 40, site: Site = Site.KEY, *, same: bool = False) -> PruningFitter:
    """Fitted on random tokens of two sets, or of one set on both sides."""
    fitted = PruningFitter(site, layers, width)
    for layer in range(layers):
        forget, retain = torch.randn(200, width), torch.randn(300, width)
        fitted.update(layer, forget, forget=True)
        fitted.update(layer, forget if same else retain, forget=False)
    return fitted


def count(chosen: dict[int, Tensor]) -> int:
    return sum(neurons.numel() for neurons in chosen.values())


class TestImportance:
    """The four statistics."""

    def test_each_is_its_formula(self) -> None:
        z_TF = torch.randn(500, 7) * torch.arange(1, 8) + 0.5
        z_TF[:, 3] = 0
        z = z_TF.double().numpy()
        wanted = {
            Importance.FREQ: (z > 0).mean(axis=0),
            Importance.ABS: np.abs(z).mean(axis=0),
            Importance.RMS: np.sqrt((z**2).mean(axis=0)),
            Importance.STD: z.std(axis=0),
        }
        sums = summed(z_TF)
        for kind in Importance:
            torch.testing.assert_close(sums.importance(kind), torch.from_numpy(wanted[kind]), rtol=1e-9, atol=1e-12)

    def test_std_is_a_deviation_and_not_a_variance(self) -> None:
        """Their code stores a variance: twice the output would be four times the importance."""
        z_TF = torch.randn(500, 7)
        once, twice = (summed(z_TF * factor).importance(Importance.STD) for factor in (1, 2))
        torch.testing.assert_close(twice, 2 * once)

    @pytest.mark.parametrize("kind", list(Importance))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_streamed_equals_one_shot(self, kind: Importance, dtype: torch.dtype) -> None:
        z_TF = (torch.randn(400, 9) + 3).to(dtype)
        streamed = summed(*torch.split(z_TF, [1, 0, 150, 249]))
        assert streamed.count == 400
        torch.testing.assert_close(streamed.importance(kind), summed(z_TF).importance(kind), rtol=1e-9, atol=1e-12)

    def test_one_token_has_no_deviation(self) -> None:
        sums = summed(torch.tensor([[2.0, -3.0]]))
        assert sums.importance(Importance.STD).tolist() == [0, 0]
        assert sums.importance(Importance.RMS).tolist() == [2, 3]


class TestScores:
    """The ratio of both sides."""

    @pytest.mark.parametrize("kind", list(Importance))
    def test_identical_sets_score_about_one(self, kind: Importance) -> None:
        scores_LF = fitter(same=True).scores(kind)
        assert bool(((scores_LF > 0.99) & (scores_LF < 1)).all())  # below one by eps alone
        assert not bool((fitter().scores(kind) < 1).all())  # positive control

    @pytest.mark.parametrize("site", sorted(EPSILON))
    def test_a_neuron_that_retain_text_never_uses_has_a_finite_score(self, site: Site) -> None:
        fitted = PruningFitter(site, 1, 2)
        fitted.update(0, torch.tensor([[0.5, 0.0]]), forget=True)
        fitted.update(0, torch.tensor([[0.0, 0.0]]), forget=False)
        assert fitted.scores(Importance.ABS).tolist() == [[0.5 / EPSILON[site], 0.0]]

    def test_the_epsilons_are_the_papers(self) -> None:
        assert {Site.KEY: 1e-3, Site.ATTENTION: 1e-4} == EPSILON


class TestSelection:
    """Exactly the fraction, over all layers, never twice."""

    @pytest.mark.parametrize("fraction", [0.01, 0.02, 0.29, 0.5, 1.0])
    def test_exactly_the_fraction_of_all_layers_together(self, fraction: float) -> None:
        fitted = fitter(layers=5, width=20)
        chosen = fitted.finish(fraction, Importance.ABS, {})
        assert count(chosen) == round(fraction * 100)
        scores_LF = fitted.scores(Importance.ABS)
        taken = torch.zeros_like(scores_LF, dtype=torch.bool)
        for layer, neurons in chosen.items():
            assert neurons.tolist() == sorted(set(neurons.tolist()))
            taken[layer, neurons] = True
        if fraction < 1:
            assert float(scores_LF[taken].min()) > float(scores_LF[~taken].max())

    def test_it_rounds_down(self) -> None:
        assert count(fitter(layers=3, width=33).finish(0.0299, Importance.ABS, {})) == 2  # of 2.96

    def test_a_pruned_neuron_is_never_taken_again(self) -> None:
        fitted = fitter()
        first = fitted.finish(0.1, Importance.ABS, {})
        second = fitted.finish(0.1, Importance.ABS, first)
        assert (count(first), count(second)) == (12, 24)
        for layer, neurons in first.items():
            assert set(neurons.tolist()) <= set(second[layer].tolist())
        assert all(len(set(neurons.tolist())) == neurons.numel() for neurons in second.values())

    def test_equal_scores_take_the_earlier_neuron(self) -> None:
        chosen = top_neurons(torch.ones(3, 4, dtype=torch.float64), 0.5)
        assert {layer: neurons.tolist() for layer, neurons in chosen.items()} == {0: [0, 1, 2, 3], 1: [0, 1]}

    @pytest.mark.parametrize("fraction", [0.0, 0.001, -0.1, 1.5, 0.95])
    def test_an_impossible_fraction_is_refused(self, fraction: float) -> None:
        fitted = fitter()
        first = fitted.finish(0.1, Importance.ABS, {})
        with pytest.raises(CalibrationError, match=r"of 120 neurons, 108 of them left: give one in \(0, 0\.9\]"):
            fitted.finish(fraction, Importance.ABS, first)

    def test_a_side_without_tokens_is_refused(self) -> None:
        fitted = PruningFitter(Site.KEY, 1, 4)
        fitted.update(0, torch.randn(5, 4), forget=True)
        with pytest.raises(CalibrationError, match="no token on one side"):
            fitted.finish(0.5, Importance.ABS, {})

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_a_value_that_is_not_finite_is_refused(self, bad: float) -> None:
        with pytest.raises(CalibrationError, match="layer 2: a neuron's output is not finite"):
            PruningFitter(Site.KEY, 3, 2).update(2, torch.tensor([[0.0, bad]]), forget=True)


class TestPruner:
    """What acts on a layer."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_zeroes_in_place_and_counts_what_was_not_zero(self, dtype: torch.dtype) -> None:
        x_TF = torch.tensor([[1.0, 2, 3, 4], [0, 2, 0, 4], [0, 2, -0.5, 4]]).to(dtype)
        moved_T1 = Pruner(torch.tensor([0, 2]))(x_TF, torch.arange(3), torch.ones(3, dtype=torch.bool))
        assert x_TF.tolist() == [[0, 2, 0, 4]] * 3
        assert moved_T1.dtype is torch.float32
        assert moved_T1.tolist() == [[2], [0], [1]]

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_a_value_that_is_not_finite_is_not_hidden_by_its_zero(self, bad: float) -> None:
        x_TF = torch.ones(3, 4)
        x_TF[1, 2] = bad
        moved_T1 = Pruner(torch.tensor([0, 2]))(x_TF, torch.arange(3), torch.ones(3, dtype=torch.bool))
        assert moved_T1.isnan().tolist() == [[False], [True], [False]]
        assert bool(torch.isfinite(x_TF).all())

    def test_a_rank_without_a_pruned_neuron_counts_none(self) -> None:
        x_TF = torch.ones(3, 4)
        assert Pruner(torch.zeros(0, dtype=torch.int64))(
            x_TF, torch.arange(3), torch.ones(3, dtype=torch.bool)
        ).tolist() == [[0], [0], [0]]
        assert torch.equal(x_TF, torch.ones(3, 4))

    @pytest.mark.parametrize("ranks", [2, 4])
    @pytest.mark.parametrize(("layer", "site", "width"), [(2, Site.KEY, D_FF), (1, Site.ATTENTION, D_MODEL)])
    def test_ranks_together_do_what_one_does(self, layer: int, site: Site, width: int, ranks: int) -> None:
        x_TF, place, cpu = torch.randn(6, width), Place(layer, site), torch.device("cpu")
        slices = [part.clone() for part in x_TF.chunk(ranks, dim=1)]
        whole_T1 = BoundPruning(pruned(), cpu, WHOLE).at(place, width)(
            x_TF, torch.arange(6), torch.ones(6, dtype=torch.bool)
        )
        moved = [
            BoundPruning(pruned(), cpu, Shard(rank, ranks)).at(place, width)(
                slices[rank], torch.arange(6), torch.ones(6, dtype=torch.bool)
            )
            for rank in range(ranks)
        ]
        assert torch.equal(torch.cat(slices, dim=1), x_TF)
        assert torch.equal(torch.stack(moved).sum(dim=0), whole_T1)
        assert whole_T1.tolist() == [[2]] * 6

    def test_attention_of_another_width_is_refused(self) -> None:
        bound = BoundPruning(pruned(), torch.device("cpu"), WHOLE)
        with pytest.raises(
            AttachError, match=rf"got attention vectors of 20 neurons, the guard was made for {D_MODEL}"
        ):
            bound.at(Place(1, Site.ATTENTION), 20)
