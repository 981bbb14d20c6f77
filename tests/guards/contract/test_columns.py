"""Cells: what a row of numbers says about every guard."""

import math

import pytest
import torch

from guards.contract.columns import Cells
from guards.contract.guard import Bound, Guard
from guards.core.verdict import Reading
from guards.model.shard import WHOLE
from guards.model.sites import Place, Site
from tests.guards.attached import entry
from tests.guards.samples import cube, cubes, neuron_adjust, pooled, pruned

TAU = 3.0  # of every sample cube
ABOVE_TAU = float(torch.nextafter(torch.tensor(TAU), torch.tensor(4.0)))


def cells(**guards: Guard) -> Cells:
    bound: dict[str, Bound] = {}
    for name, guard in guards.items():
        method, _ = entry(guard)
        bound[name] = method.bind(guard, torch.device("cpu"), WHOLE)
    return Cells(bound)


def both() -> Cells:
    """Layers 0 and 2 of each: columns are [cube at 0, moved at 0, cube at 2, moved at 2]."""
    return cells(sums=cubes(cube(0), cube(2)), shift=neuron_adjust())


def test_columns_of_a_place_lie_together_with_detectors_first() -> None:
    laid = both()
    assert [(cell.guard, cell.place.layer) for cell in laid.all] == [
        *(("sums", 0), ("shift", 0)),
        *(("sums", 2), ("shift", 2)),
    ]
    assert laid.at(Place(2, Site.KEY)) == [2]
    assert laid.at(Place(2, Site.PRE_ACTIVATION)) == [3]
    assert laid.counts == [1, 3]


def test_an_intervention_has_a_cell_for_every_place_it_acts_at() -> None:
    laid = cells(mask=pruned(), sums=cubes(cube(0), cube(2)))
    assert [(cell.guard, *cell.place) for cell in laid.all] == [
        ("mask", 0, Site.ATTENTION),
        *(("sums", 0, Site.KEY), ("mask", 0, Site.KEY)),
        ("mask", 1, Site.ATTENTION),
        *(("sums", 2, Site.KEY), ("mask", 2, Site.KEY)),
    ]
    assert laid.at(Place(2, Site.KEY)) == [4, 5]
    assert laid.counts == [0, 2, 3, 5]
    assert laid.readings([1, 9, 2, 0, 9, 3])["mask"] == (Reading.OUTSIDE, (6.0,))
    assert laid.readings([1, 9, 2, math.nan, 9, 3])["mask"][0] is Reading.INVALID


@pytest.mark.parametrize(
    ("row", "sums", "shift"),
    [
        ([TAU, 0, 9, 0], Reading.INSIDE, Reading.OUTSIDE),
        ([9, 0, TAU, 0], Reading.INSIDE, Reading.OUTSIDE),
        ([ABOVE_TAU, 0, 9, 5], Reading.OUTSIDE, Reading.OUTSIDE),
        ([math.nan, 0, 1, 0], Reading.INVALID, Reading.OUTSIDE),
        ([1, 0, math.inf, 0], Reading.INVALID, Reading.OUTSIDE),
        ([9, math.nan, 9, 0], Reading.OUTSIDE, Reading.INVALID),
        ([9, 1, 9, math.nan], Reading.OUTSIDE, Reading.INVALID),
    ],
)
def test_what_a_row_says(row: list[float], sums: Reading, shift: Reading) -> None:
    readings = both().readings(row)
    assert readings["sums"][0] is sums
    assert readings["shift"][0] is shift


def test_an_intervention_counts_over_its_layers() -> None:
    assert both().readings([9, 4, 9, 3])["shift"] == (Reading.OUTSIDE, (7.0,))


@pytest.mark.parametrize("row", [[], [1.0], [1.0] * 5])
def test_a_row_of_another_length_is_missing(row: list[float]) -> None:
    assert both().readings(row) == {"sums": (Reading.MISSING, ()), "shift": (Reading.MISSING, ())}


def test_fresh_memory_is_no_pass() -> None:
    assert {reading for reading, _ in both().readings([math.nan] * 4).values()} == {Reading.INVALID}


def test_ranks_take_the_largest_score_and_the_sum_of_counts() -> None:
    ranks = torch.tensor([[[1.0, 2, 5, 0]], [[4.0, 3, 2, 1]]])
    assert both().over_ranks(ranks).tolist() == [[4, 5, 5, 1]]


@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("rank", range(2))
def test_no_rank_hides_the_nan_of_another(column: int, rank: int) -> None:
    ranks = torch.ones(2, 3, 4)
    ranks[rank, 1, column] = torch.nan
    joined = both().over_ranks(ranks)
    assert torch.isnan(joined).nonzero().tolist() == [[1, column]]


def test_no_guard_no_cells() -> None:
    laid = cells()
    assert len(laid) == 0
    assert laid.codes(torch.zeros(5, 0)).shape == (5, 0)
    assert laid.readings([]) == {}


def pooled_beside() -> Cells:
    """Columns: the cube at 0, the mean at 1, [cube, mean, moved] at 2, and moved at 0 before the cube."""
    return cells(mean=pooled(1, 2), sums=cubes(cube(0), cube(2)), shift=neuron_adjust())


def test_a_pooled_guard_has_a_cell_at_every_layer_and_one_part() -> None:
    laid = pooled_beside()
    assert [(cell.guard, cell.part, cell.place.layer) for cell in laid.all] == [
        *(("sums", 0, 0), ("shift", 0, 0)),
        ("mean", 0, 1),
        *(("mean", 0, 2), ("sums", 1, 2), ("shift", 0, 2)),
    ]
    assert laid.pooled == [2, 3]
    assert laid.summed == [1, 2, 3, 5]
    assert laid.counts == [1, 5]


POOLED_TAU = 0.5


@pytest.mark.parametrize(
    ("row", "mean", "sums"),
    [
        ([9, 0, 0.75, -0.25, 9, 0], Reading.INSIDE, Reading.OUTSIDE),
        ([9, 0, 0.25, 0.5, 9, 0], Reading.OUTSIDE, Reading.OUTSIDE),
        ([9, 0, -9, 9.75, TAU, 0], Reading.OUTSIDE, Reading.INSIDE),
        ([9, 0, -9, 9, 9, 0], Reading.INSIDE, Reading.OUTSIDE),
        ([9, 0, math.nan, -9, 9, 0], Reading.INVALID, Reading.OUTSIDE),
        ([9, 0, -9, math.nan, 9, 0], Reading.INVALID, Reading.OUTSIDE),
        ([9, 0, -math.inf, 0, 9, 0], Reading.INVALID, Reading.OUTSIDE),
        ([math.nan, 0, -9, 0, 9, 0], Reading.INSIDE, Reading.INVALID),
        ([9, math.nan, -9, 0, TAU, 0], Reading.INSIDE, Reading.INSIDE),
    ],
)
def test_what_a_row_says_of_a_pooled_guard_beside_a_cube(row: list[float], mean: Reading, sums: Reading) -> None:
    readings = pooled_beside().readings(row)
    assert (readings["mean"][0], readings["sums"][0]) == (mean, sums)


def test_a_pooled_score_is_the_sum_over_layers() -> None:
    laid = pooled_beside()
    assert laid.readings([9, 0, 0.75, -0.25, 8, 0])["mean"] == (Reading.INSIDE, (POOLED_TAU,))
    assert laid.readings([9, 0, 0.75, -0.25, 8, 0])["sums"] == (Reading.OUTSIDE, (9.0, 8.0))


def test_ranks_add_pooled_scores_and_keep_a_cubes_largest() -> None:
    ranks = torch.tensor([[[1.0, 2, 0.5, -1, 5, 0]], [[4.0, 3, 0.25, -2, 2, 1]]])
    assert pooled_beside().over_ranks(ranks).tolist() == [[4, 5, 0.75, -3, 5, 1]]


@pytest.mark.parametrize("column", range(6))
@pytest.mark.parametrize("rank", range(2))
def test_no_rank_hides_the_nan_of_another_beside_pooled_scores(column: int, rank: int) -> None:
    ranks = torch.ones(2, 3, 6)
    ranks[rank, 1, column] = torch.nan
    laid = pooled_beside()
    joined = laid.over_ranks(ranks)
    assert torch.isnan(joined).nonzero().tolist() == [[1, column]]
    broken = (laid.codes(joined) == int(Reading.INVALID)).nonzero().tolist()
    assert broken == [[1, laid.guards.index(laid.all[column].guard)]]
