"""Columns: what cells become, and what a row of numbers says about every guard."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from guards.contract.columns import Bookkeeping, Columns, GuardReading
from guards.contract.guard import Bound, Guard, OverRanks, default_rules
from guards.contract.turn_finder import TurnFinder
from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardMode, Reading, Scope
from guards.model.shard import WHOLE
from guards.model.sites import Place, Site
from tests.guards.attached import entry
from tests.guards.contract.running import sequences
from tests.guards.samples import MEAN_ALONE, cube, cubes, neuron_adjust, pruned, spans
from tests.models import D_MODEL
from tests.toys.probe.guard import ProbeGuard

CPU = torch.device("cpu")
TAU = 3.0  # of every sample cube
ABOVE_TAU = float(torch.nextafter(torch.tensor(TAU), torch.tensor(4.0)))


NEW = (torch.tensor([7, 7]), torch.tensor([0, 1]))
"""Tokens at their positions."""


def books_of(columns: Columns) -> Bookkeeping:
    return Bookkeeping(columns, CPU, TurnFinder([], CPU))


class Laid:
    """Some guards' columns, and the rules that their artifacts have."""

    def __init__(self, **guards: Guard) -> None:
        self.bound: dict[str, Bound] = {}
        for name, guard in guards.items():
            method, _ = entry(guard)
            self.bound[name] = method.bind(guard, CPU, WHOLE)
        self.columns = Columns(self.bound)
        self.policy = Policy(default_rules(self.bound, dict.fromkeys(guards, Scope.BOTH)))

    @property
    def names(self) -> list[tuple[str, int]]:
        """Whose each column is, and its layer."""
        return [(guard, column.place.layer) for guard, column in self.columns.all]

    def readings(self, row: Sequence[float]) -> Mapping[str, GuardReading]:
        """What one row says under the guards' own rules."""
        (said,) = self.columns.readings(torch.tensor([row]), self.columns.taus([self.policy]))
        return said

    def said(self, cells: Sequence[float]) -> Mapping[str, GuardReading]:
        """What the cells of a token say behind a first one, of the same cells, that counts for no text."""
        one = sequences([0, 2], [3, 4], [-1])
        rows_RX = books_of(self.columns).rows(torch.tensor([cells] * 2), *NEW, one)
        return self.readings(rows_RX[1].tolist())

    def codes(self, part_RP: Tensor) -> Tensor:
        return self.columns.read(part_RP, self.columns.taus([self.policy]))


def both() -> Laid:
    """Layers 0 and 2 of each: columns are [cube at 0, moved at 0, cube at 2, moved at 2]."""
    return Laid(sums=cubes(cube(0), cube(2)), shift=neuron_adjust())


def test_columns_ascend_by_place_and_then_in_the_order_of_guards() -> None:
    laid = both()
    assert laid.names == [("sums", 0), ("shift", 0), ("sums", 2), ("shift", 2)]
    assert laid.columns.at(Place(2, Site.KEY), {"sums", "shift"}) == [2]
    assert laid.columns.at(Place(2, Site.PRE_ACTIVATION), {"sums", "shift"}) == [3]
    assert laid.columns.at(Place(2, Site.KEY), {"shift"}) == []
    assert laid.columns.on(CPU).added_C.tolist() == [False, True, False, True]
    assert (laid.columns.token, laid.columns.accumulated, laid.columns.width) == ([0, 1, 2, 3], [], 4)
    assert list(laid.columns.health) == ["shift"]
    assert laid.columns.health_parts == [2], "behind both cubes"
    for order in (("a", "b"), ("b", "a")):
        samples: dict[str, Guard] = {"a": cubes(), "b": pruned()}
        guards = {name: samples[name] for name in order}
        at_2 = [guard for guard, layer in Laid(**guards).names if layer == 2]
        assert at_2 == list(order)


def test_an_intervention_has_a_column_for_every_place_it_acts_at() -> None:
    laid = Laid(mask=pruned(), sums=cubes(cube(0), cube(2)))
    assert [(guard, *column.place) for guard, column in laid.columns.all] == [
        ("mask", 0, Site.ATTENTION),
        *(("mask", 0, Site.KEY), ("sums", 0, Site.KEY)),
        ("mask", 1, Site.ATTENTION),
        *(("mask", 2, Site.KEY), ("sums", 2, Site.KEY)),
    ]
    assert laid.columns.at(Place(2, Site.KEY), {"mask", "sums"}) == [4, 5]
    assert laid.columns.on(CPU).added_C.nonzero().flatten().tolist() == [0, 1, 3, 4]
    assert laid.readings([1, 2, 9, 0, 3, 9])["mask"] == (Reading.OUTSIDE, (6.0,))
    assert laid.readings([1, 2, 9, math.nan, 3, 9])["mask"][0] is Reading.INVALID


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
    assert both().said(row) == readings or any(map(math.isnan, row)), "columns of single tokens are a row as they are"


def test_an_intervention_counts_over_its_layers() -> None:
    assert both().readings([9, 4, 9, 3])["shift"] == (Reading.OUTSIDE, (7.0,))


@pytest.mark.parametrize("row", [[], [1.0], [1.0] * 5])
def test_a_row_of_another_length_is_missing(row: list[float]) -> None:
    assert both().readings(row) == {"sums": (Reading.MISSING, ()), "shift": (Reading.MISSING, ())}


def test_fresh_memory_is_no_pass() -> None:
    (fresh,) = books_of(both().columns).fresh(1).tolist()
    assert len(fresh) == 4
    assert {reading for reading, _ in both().readings(fresh).values()} == {Reading.INVALID}


@pytest.mark.parametrize("missing", [(), ("sums",), ("shift",), ("sums", "shift")])
@pytest.mark.parametrize("row", [[9.0, 0, 9, 0], [1.0, 0, 9, 0], [math.nan] * 4])
def test_a_guard_that_was_not_heard_of_is_missing_whatever_the_row_says(
    missing: tuple[str, ...], row: list[float]
) -> None:
    laid = both()
    (said,) = laid.columns.readings(torch.tensor([row]), laid.columns.taus([laid.policy]), missing)
    for name, (reading, _) in said.items():
        assert reading is (Reading.MISSING if name in missing else laid.readings(row)[name][0])


def test_every_row_is_judged_by_its_own_policy() -> None:
    """Thresholds are those of the parts in order; an intervention is never inside, whatever a rule says of it."""
    laid = Laid(shift=neuron_adjust(), sums=cubes(cube(0), cube(2)))
    rules = [(5.0, 1.0), (1.0, 5.0), (1.0, 1.0), (9.0, 9.0)]
    policies = [
        Policy({"sums": Rule(mode, Scope.PROMPT, taus), "shift": Rule(taus=(8.0,))})
        for mode, taus in zip(itertools.cycle(GuardMode), rules, strict=False)
    ]
    tau_RP = laid.columns.taus(policies)
    assert tau_RP.dtype is torch.float32
    assert tau_RP.tolist() == [[-math.inf, *taus] for taus in rules]
    readings = laid.columns.readings(torch.tensor([[2.0, 0, 8, 0]] * 4), tau_RP)
    assert [of_row["sums"][0] for of_row in readings] == [
        *(Reading.INSIDE, Reading.OUTSIDE, Reading.OUTSIDE, Reading.INSIDE)
    ]
    assert {of_row["shift"] for of_row in readings} == {(Reading.OUTSIDE, (0.0,))}


def test_ranks_take_the_largest_score_and_the_sum_of_counts() -> None:
    ranks = torch.tensor([[[1.0, 2, 5, 0]], [[4.0, 3, 2, 1]]])
    assert both().columns.over_ranks(ranks, torch.arange(4)).tolist() == [[4, 5, 5, 1]]
    assert both().columns.over_ranks(ranks[:, :, [3, 0]], torch.tensor([3, 0])).tolist() == [[1, 4]]


@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("rank", range(2))
def test_no_rank_hides_the_nan_of_another(column: int, rank: int) -> None:
    ranks = torch.ones(2, 3, 4)
    ranks[rank, 1, column] = torch.nan
    joined = both().columns.over_ranks(ranks, torch.arange(4))
    assert torch.isnan(joined).nonzero().tolist() == [[1, column]]


def test_no_guard_no_columns() -> None:
    laid = Laid()
    assert len(laid.columns) == laid.columns.width == 0
    assert laid.columns.parts(torch.zeros(5, 0)).shape == (5, 0)
    assert laid.codes(torch.zeros(5, 0)).shape == (5, 0)
    assert laid.readings([]) == {}
    assert books_of(laid.columns).rows(torch.zeros(5, 0), torch.arange(5), torch.arange(5), None).shape == (5, 0)


def probe() -> ProbeGuard:
    return ProbeGuard((1, 2), torch.ones(2, D_MODEL), 0.0)


def accumulated() -> Laid:
    """Columns: the cube and moved at 0, the mean and the least at 1, and [mean, cube], moved and least at 2."""
    return Laid(
        mean=spans(1, 2, judgements=MEAN_ALONE), sums=cubes(cube(0), cube(2)), shift=neuron_adjust(), least=probe()
    )


def test_a_guard_that_counts_tokens_so_far_has_a_column_at_every_layer_and_one_entry() -> None:
    columns = accumulated().columns
    assert [(guard, column.part, column.place.layer) for guard, column in columns.all] == [
        *(("sums", 0, 0), ("shift", 0, 0)),
        *(("mean", 0, 1), ("least", 0, 1)),
        *(("mean", 0, 2), ("sums", 1, 2), ("shift", 0, 2), ("least", 0, 2)),
    ]
    assert columns.token == [0, 1, 5, 6]
    assert columns.accumulated == [2, 3, 4, 7]
    assert columns.on(CPU).added_C.nonzero().flatten().tolist() == [1, 2, 4, 6]
    assert columns.width == 4 + 2
    assert len(columns) == 8


@pytest.mark.parametrize(
    ("cells", "mean", "sums"),
    [
        ([9, 0, 0.75, 9, -0.25, 9, 0, 9], Reading.INSIDE, Reading.OUTSIDE),
        ([9, 0, 0.25, 9, 0.5, 9, 0, 9], Reading.OUTSIDE, Reading.OUTSIDE),
        ([9, 0, -9, 9, 9.75, TAU, 0, 9], Reading.OUTSIDE, Reading.INSIDE),
        ([9, 0, -9, 9, 9, 9, 0, 9], Reading.INSIDE, Reading.OUTSIDE),
        ([9, 0, math.nan, 9, -9, 9, 0, 9], Reading.INVALID, Reading.OUTSIDE),
        ([9, 0, -9, 9, math.nan, 9, 0, 9], Reading.INVALID, Reading.OUTSIDE),
        ([9, 0, -math.inf, 9, 0, 9, 0, 9], Reading.INVALID, Reading.OUTSIDE),
        ([math.nan, 0, -9, 9, 0, 9, 0, 9], Reading.INSIDE, Reading.INVALID),
        ([9, math.nan, -9, 9, 0, TAU, 0, 9], Reading.INSIDE, Reading.INSIDE),
    ],
)
def test_what_cells_say_of_a_guard_over_spans_beside_a_cube(cells: list[float], mean: Reading, sums: Reading) -> None:
    readings = accumulated().said(cells)
    assert (readings["mean"][0], readings["sums"][0]) == (mean, sums)
    assert readings["least"] == (Reading.OUTSIDE, (18.0,))


def test_a_value_is_the_sum_over_layers() -> None:
    readings = accumulated().said([9, 0, 0.75, -3, -0.25, 8, 0, 4])
    assert readings["mean"] == (Reading.INSIDE, (0.75,)), "its tau, and half of the evidence of a value of .5"
    assert readings["sums"] == (Reading.OUTSIDE, (9.0, 8.0))
    assert readings["least"] == (Reading.INSIDE, (1.0,))


@pytest.mark.parametrize("broken", [None, 4, 5])
def test_a_row_has_the_entries_of_single_tokens_and_then_every_running_value(broken: int | None) -> None:
    laid = accumulated()
    row = [9.0, 1, 8, 2, 0.5, 7]
    if broken is None:
        assert laid.readings(row) == {
            "mean": (Reading.INSIDE, (0.5,)),
            "sums": (Reading.OUTSIDE, (9.0, 8.0)),
            "shift": (Reading.OUTSIDE, (3.0,)),
            "least": (Reading.OUTSIDE, (7.0,)),
        }
    else:
        row[broken] = math.nan
        invalid = {name for name, (reading, _) in laid.readings(row).items() if reading is Reading.INVALID}
        assert invalid == {["mean", "least"][broken - 4]}


def test_a_row_of_a_token_is_over_all_tokens_of_its_sequence_so_far() -> None:
    """In two passes, of two sequences; a pass for nobody keeps nothing."""
    laid, positions = accumulated(), torch.tensor([0, 1, 0])
    books = books_of(laid.columns)
    cells = torch.zeros(3, 8)
    cells[:, 2] = torch.tensor([1.0, 2, 7])
    cells[:, 3] = torch.tensor([4.0, 9, 5])
    first = sequences([0, 2, 3], [0, 1, 8], [-1, -1])
    assert books.rows(cells, positions, positions, first)[:, 4:].tolist() == [[1, 4], [1.5, 4], [1, 5]]
    nobody = books.rows(cells, positions, positions, None)
    assert bool(torch.isnan(nobody[:, 4:]).all())
    assert torch.equal(nobody[:, :4], cells[:, laid.columns.token])
    later = sequences([0, 1, 3], [2, 9, 10], [1, 8])
    rows = books.rows(cells, positions, torch.tensor([2, 1, 2]), later)[:, 4:]
    torch.testing.assert_close(rows, torch.tensor([[4 / 3, 4], [1.5, 5], [10 / 3, 5]]))


def test_ranks_add_values_and_keep_a_cubes_largest() -> None:
    ranks = torch.tensor([[[1.0, 2, 0.5, 6, -1, 5, 0, 7]], [[4.0, 3, 0.25, 6, -2, 2, 1, 7]]])
    assert accumulated().columns.over_ranks(ranks, torch.arange(8)).tolist() == [[4, 5, 0.75, 6, -3, 5, 1, 7]]


@pytest.mark.parametrize("column", range(8))
@pytest.mark.parametrize("rank", range(2))
def test_no_rank_hides_the_nan_of_another_beside_values_that_are_added(column: int, rank: int) -> None:
    """Of what each has all of, too: a rank whose site did not run says nothing is well there."""
    ranks = torch.ones(2, 3, 8)
    ranks[rank, 1, column] = torch.nan
    laid = accumulated()
    joined = laid.columns.over_ranks(ranks, torch.arange(8))
    assert torch.isnan(joined).nonzero().tolist() == [[1, column]]
    own = sequences(range(4), range(3), [-1] * 3)
    rows_RX = books_of(laid.columns).rows(joined, torch.arange(3), torch.zeros(3, dtype=torch.int64), own)
    broken = (laid.codes(laid.columns.parts(rows_RX)) == int(Reading.INVALID)).nonzero().tolist()
    assert broken == [[1, laid.columns.guards.index(laid.columns.all[column].guard)]]


def test_ranks_are_joined_before_tokens_are_and_single_tokens_only_where_they_are_sampled() -> None:
    """The least of sums over ranks, not the sum of what is least on each."""
    laid = Laid(sums=cubes(cube(0)), least=probe())
    laid.bound["least"] = AddedUp(laid.bound["least"])
    columns = Columns(laid.bound)
    mine, other = torch.tensor([[2.0, 1, 1], [3.0, 9, 1]]), torch.tensor([[4.0, 8, 1], [1.0, 1, 1]])
    asked: list[tuple[list[int], int]] = []

    def over_ranks(cells_TC: Tensor, which: Tensor) -> Tensor:
        asked.append((list(which), len(cells_TC)))
        rows = other if len(cells_TC) == 2 else other[1:]
        return columns.over_ranks(torch.stack([cells_TC, rows[:, which]]), which)

    books = Bookkeeping(columns, CPU, TurnFinder([], CPU), over_ranks)
    one = sequences([0, 2], [0, 1], [-1])
    rows = books.rows(mine, torch.tensor([0, 1]), torch.tensor([0, 1]), one)
    assert rows.tolist() == [[2, 11], [3, 11]], "9 + 2 and 10 + 2, not 1 + 1 + 1 + 1; the cube's is still this rank's"
    assert books.join(rows[1:]).tolist() == [[3, 11]]
    assert asked == [([1, 2], 2), ([0], 1)]
    assert mine.tolist() == [[2, 1, 1], [3, 9, 1]], "a pass's cells stay what they are"


class AddedUp:
    """A bound guard of which slices are added up."""

    def __init__(self, of: Bound) -> None:
        self.parts, self.taus, self.health, self.at = of.parts, of.taus, of.health, of.at
        self.columns = tuple(replace(column, over_ranks=OverRanks.SUM) for column in of.columns)
