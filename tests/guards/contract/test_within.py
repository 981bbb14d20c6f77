"""States over a pass in closed form, against joining token by token; and what an engine says of a pass's sequences."""

import pytest
import torch
from torch import Tensor

from guards.contract.accumulate import LEAST_OF_A_PIECE, OverTokens, _by_ranks, _pieces, running_max, scan, together
from guards.contract.running import RunningStates
from guards.contract.slots import Sequences, link
from guards.contract.spans import MessageMean, Rise
from guards.contract.turn_finder import _Side
from guards.contract.turns import Stretches, Turns, one_message
from tests.guards.contract.strategies import MEAN

CPU = torch.device("cpu")
TOKENS = 300
START_T = torch.tensor([0] * 5 + [5] * 1 + [6] * 17 + [23] * 128 + [151] * 149)


def turns(generator: torch.Generator, often: float) -> Turns:
    """Messages of both sides, some of which change sides."""
    opens_T = torch.rand(TOKENS, generator=generator) < often
    written_T = (torch.rand(TOKENS, generator=generator) < 0.5) & opens_T
    newest_T = torch.where(opens_T, torch.arange(TOKENS), 0).cummax(0).values
    return Turns(
        (torch.rand(TOKENS, generator=generator) < 0.8) & ~opens_T,
        opens_T,
        opens_T & (torch.rand(TOKENS, generator=generator) < 0.5),
        written_T[newest_T],
    )


def reached(strategy: OverTokens, values_TC: Tensor, of: Turns) -> Tensor:
    """A state that some text leaves, [1, C, K]."""
    return scan(strategy, strategy.lift(values_TC, of), torch.zeros(TOKENS, dtype=torch.int64))[-1:]


@pytest.mark.parametrize("often", [0.0, 0.05, 0.4])
@pytest.mark.parametrize(
    "strategies",
    [
        [Rise(kappa, written) for kappa in (0.25, 0.5) for written in (False, True)],
        [MessageMean(weight, written) for weight in (1.0, 3.0) for written in (False, True)],
        [_Side()] * 4,
    ],
    ids=["rise", "mean", "sides"],
)
def test_a_closed_form_reads_as_joining_does(strategies: list[OverTokens], often: float) -> None:
    """Bit for bit where values are whole eighths, whose sums are exact; after nothing and after another text."""
    generator = torch.Generator().manual_seed(7)
    values_TC, of = (torch.randn(TOKENS, 4, generator=generator) * 16).round() / 8, turns(generator, often)
    if isinstance(strategies[0], _Side):
        values_TC = torch.where(of.opens, 1 + of.written.float(), 0)[:, None].expand(-1, 4)
    strategy = together(strategies, CPU)
    befores = [torch.tensor([strategy.neutral]).double().expand(1, 4, -1)]
    befores.append(reached(strategy, values_TC.flip(0), turns(generator, often)))
    joined_TCK = scan(strategy, strategy.lift(values_TC, of), START_T)
    within_TCK = strategy.within(values_TC, Stretches(of, START_T))
    for before_1CK in befores:
        before_TCK = before_1CK.expand(TOKENS, -1, -1)
        got, wanted = (strategy.read(values_TC, strategy.join(before_TCK, each)) for each in (within_TCK, joined_TCK))
        assert torch.equal(got, wanted)
    by_itself_TC = strategy.read(values_TC, strategy.lift(values_TC, of))
    assert torch.equal(by_itself_TC, wanted) == (isinstance(strategy, _Side) and not often), "positive control"


def test_columns_of_a_class_together_are_each_by_itself() -> None:
    generator = torch.Generator().manual_seed(2)
    values_TC, of = torch.randn(TOKENS, 2, generator=generator), turns(generator, 0.1)
    pair = [Rise(0.5, False), Rise(0.1, True)]
    both = together(pair, CPU).lift(values_TC, of)
    apart = torch.cat([each.lift(values_TC[:, i : i + 1], of) for i, each in enumerate(pair)], dim=1)
    assert torch.equal(both, apart)
    assert not torch.equal(both, pair[0].lift(values_TC, of)), "positive control: the second has parameters of its own"


def test_a_largest_value_since_a_row() -> None:
    x_CT = torch.tensor([[3.0, 1.0, -torch.inf, 2.0, 2.0, 5.0], [-1.0, -2.0, -3.0, 0.0, 7.0, 1.0]])
    begin_CT = torch.tensor([[0, 0, 2, 2, 2, 2], [0, 1, 1, 3, 3, 5]])
    wanted = [[3, 3, -torch.inf, 2, 2, 5], [-1, -2, -2, 0, 7, 1]]
    assert running_max(x_CT, begin_CT).tolist() == wanted


PIECES = 8


@pytest.mark.parametrize("changes", [0, 1, PIECES - 1, PIECES, 100])
def test_a_largest_value_of_a_large_pass_is_the_same_by_pieces(changes: int) -> None:
    """Which go on over each other's ends in columns whose beginning does not change there."""
    generator = torch.Generator().manual_seed(changes)
    columns, tokens = 4, PIECES * LEAST_OF_A_PIECE // 4
    at_N = torch.randperm(tokens - 1, generator=generator)[:changes] + 1
    anew_CT = torch.zeros(columns, tokens, dtype=torch.bool)
    anew_CT[:, at_N] = torch.rand(columns, changes, generator=generator) < 0.7
    begin_CT = torch.where(anew_CT, torch.arange(tokens), 0).cummax(dim=-1).values
    x_CT = torch.randn(columns, tokens, generator=generator).double().cumsum(dim=-1)
    x_CT[torch.rand(columns, tokens, generator=generator) < 0.1] = -torch.inf
    assert (_pieces(begin_CT) is None) == (changes >= PIECES)
    got_CT = running_max(x_CT, begin_CT)
    assert torch.equal(got_CT, _by_ranks(x_CT, begin_CT))
    for column, row in [(0, tokens - 1), (1, tokens // 2), (3, int(at_N.min()) if changes else 1)]:
        assert got_CT[column, row] == x_CT[column, begin_CT[column, row] : row + 1].max()


@pytest.mark.parametrize(
    ("previous", "longest", "shares", "fresh", "finite"),
    [
        ([-1, -1], 2, True, False, [True] * 4),
        ([-1, 1], 2, True, False, [True] * 4),  # goes on from the first, in this pass
        ([-1, 1], 2, False, False, [True, True, False, False]),
        ([-1, -1], 1, True, False, [False] * 4),
        ([-1, -1], 2, False, True, [True] * 4),
        ([-1, 1], 2, True, True, [True, True, False, False]),
    ],
)
def test_what_an_engine_says_of_its_sequences_is_checked(
    previous: list[int], longest: int, shares: bool, fresh: bool, finite: list[bool]
) -> None:
    """What contradicts it reads NaN, which withholds."""
    store = RunningStates([MEAN], CPU)
    store.reserve(8)
    before_SH = torch.tensor([[-1] * 15 + [slot] for slot in previous])
    positions_T = torch.tensor([0, 1, *((0, 1) if previous[1] < 0 else (2, 3))])
    sound_S = torch.ones(2, dtype=torch.bool)
    found = Sequences(torch.tensor([0, 2, 4]), torch.arange(4), before_SH, sound_S, longest, shares, fresh)
    read_T1 = store.extend(torch.ones(4, 1), link(positions_T, found, looks=False), one_message(positions_T))
    assert torch.isfinite(read_T1[:, 0]).tolist() == finite


@pytest.mark.parametrize("strategies", [[MEAN] * 2, [Rise(0.5, False), Rise(0.1, False)], [MessageMean(2, False)] * 2])
def test_what_starts_in_a_pass_reads_and_keeps_alike_whether_an_engine_says_so(strategies: list[OverTokens]) -> None:
    """The states of a first pass decide what a second one reads: one that was kept otherwise would show there."""
    values_TC = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(5))
    read = []
    for fresh in (True, False):
        store, sound_S = RunningStates(strategies, CPU), torch.ones(2, dtype=torch.bool)
        store.reserve(8)
        for step, first in enumerate((0, 2)):
            before_S1 = torch.tensor([[-1], [-1]]) if not step else torch.tensor([[1], [5]])
            slots_T = torch.tensor([0, 1, 4, 5]) + first
            positions_T = torch.tensor([0, 1, 0, 1]) + first
            says = fresh and not step
            found = Sequences(torch.tensor([0, 2, 4]), slots_T, before_S1, sound_S, 2, not says, says)
            links = link(positions_T, found, looks=False)
            read.append(store.extend(values_TC[step], links, one_message(positions_T)))
    assert torch.equal(read[0], read[2])
    assert torch.equal(read[1], read[3])
    assert not torch.equal(read[0], read[1]), "positive control"
