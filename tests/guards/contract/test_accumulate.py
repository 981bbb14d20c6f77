"""Running states: what they are of, and what they never hide."""

import pickle
from functools import partial

import pytest
import torch
from torch import Tensor

from guards.contract.accumulate import TOKEN, OverTokens, scan
from guards.contract.running import HUGE, RunningStates
from guards.contract.slots import _written
from guards.contract.spans import MessageMean, Rise
from guards.contract.turns import one_message
from tests.guards.contract.running import extend, sequences
from tests.guards.contract.strategies import LEAST, MEAN, Cusum, Mean

CPU = torch.device("cpu")
NOWHERE = -1
STRATEGIES = (MEAN, LEAST, TOKEN, Cusum(0.25), Cusum(0.5))


def running_means() -> RunningStates:
    return RunningStates([MEAN, MEAN], CPU)


def means(
    store: RunningStates, values: Tensor, first: int, slots: list[int], previous: int, *, looks: bool = True
) -> Tensor:
    """One sequence's next tokens, the first of them at position `first`."""
    positions_T = torch.arange(first, first + len(values))
    return extend(store, values, positions_T, sequences([0, len(values)], slots, [previous]), looks=looks)


@pytest.fixture
def values() -> Tensor:
    return torch.randn(11, 2, generator=torch.Generator().manual_seed(3))


def expected(values: Tensor) -> Tensor:
    return values.double().cumsum(0).div(torch.arange(1, len(values) + 1)[:, None]).float()


@pytest.mark.parametrize("cuts", [(11,), (4, 7), (1, 1, 1, 8), (10, 1)])
def test_a_sequence_in_pieces_has_the_means_of_the_whole(values: Tensor, cuts: tuple[int, ...]) -> None:
    store, got, at = running_means(), [], 0
    for size in cuts:
        slots = list(range(at, at + size))
        got.append(means(store, values[at : at + size], at, slots, at - 1 if at else NOWHERE))
        at += size
    torch.testing.assert_close(torch.cat(got), expected(values), rtol=1e-6, atol=1e-6)


def test_sequences_of_one_pass_do_not_mix(values: Tensor) -> None:
    store = running_means()
    means(store, values[:4], 0, [40, 41, 42, 43], NOWHERE)
    packed = torch.cat([values[4:6], values, values[:1]])
    positions_T = torch.tensor([4, 5, *range(11), 0])
    got = extend(store, packed, positions_T, sequences([0, 2, 13, 14], [*range(50, 64)], [43, NOWHERE, NOWHERE]))
    torch.testing.assert_close(got[:2], expected(values)[4:6], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got[2:13], expected(values), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got[13:], values[:1], rtol=1e-6, atol=1e-6)


def test_another_request_goes_on_from_a_cached_prefix(values: Tensor) -> None:
    store = running_means()
    means(store, values[:6], 0, list(range(6)), NOWHERE)
    got = means(store, values[4:], 4, list(range(20, 27)), 3)
    torch.testing.assert_close(got, expected(values)[4:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("previous", [9, 10_000])
def test_what_nobody_wrote_is_not_finite(values: Tensor, previous: int) -> None:
    store = running_means()
    means(store, values[:3], 0, [0, 1, 2], NOWHERE)
    assert bool(torch.isnan(means(store, values[3:5], 3, [3, 4], previous)).all())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 2 * HUGE])
def test_a_value_that_is_not_finite_stays_and_hurts_no_other(values: Tensor, bad: float) -> None:
    store = running_means()
    packed, positions_T = torch.cat([values[:4], values]), torch.tensor([*range(4), *range(11)])
    packed[2, 0] = bad
    got = extend(store, packed, positions_T, sequences([0, 4, 15], [*range(15)], [NOWHERE, NOWHERE]))
    assert torch.isfinite(got[:4]).tolist() == [[True, True], [True, True], [False, True], [False, True]]
    torch.testing.assert_close(got[4:], expected(values), rtol=1e-6, atol=1e-6)
    later = means(store, values[4:6], 4, [20, 21], 3)
    assert torch.isfinite(later).tolist() == [[False, True]] * 2, "it is in every later mean of its sequence"


def test_a_slot_below_zero_is_not_kept(values: Tensor) -> None:
    store = running_means()
    got = means(store, values, 0, [NOWHERE] * 11, NOWHERE)
    torch.testing.assert_close(got, expected(values), rtol=1e-6, atol=1e-6)
    assert bool(torch.isnan(means(store, values[:1], 1, [0], 5)).all())


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
def test_a_prefix_that_this_very_pass_computes(values: Tensor, order: str) -> None:
    """B goes on from A, and C from B, on slots that still hold another sequence's sums; nothing hangs on who is first.

    vLLM shares blocks that it has scheduled and not yet computed.
    """
    first = {"a": 0, "b": 4, "c": 6}
    rows = {"a": range(4), "b": range(4, 6), "c": range(6, 11)}
    store = running_means()
    means(store, torch.full((11, 2), 50.0), 0, list(range(11)), NOWHERE)
    at = torch.tensor([row for name in order for row in rows[name]])
    bounds = [sum(len(rows[name]) for name in order[:i]) for i in range(4)]
    got = extend(store, values[at], at, sequences(bounds, at.tolist(), [first[name] - 1 for name in order]))
    torch.testing.assert_close(got, expected(values)[at], rtol=1e-6, atol=1e-6)
    later = means(store, values[6:], 6, list(range(20, 25)), 5)
    torch.testing.assert_close(later, expected(values)[6:], rtol=1e-6, atol=1e-6)


def test_a_slot_of_a_ring_is_not_taken_for_a_later_token(values: Tensor) -> None:
    """A window of four tokens: this pass writes slot 3, where the token before lies, for a later position."""
    store = running_means()
    means(store, values[:4], 0, [0, 1, 2, 3], NOWHERE)
    got = means(store, values[4:10], 4, [0, 1, 2, 3, 0, 1], 3)
    torch.testing.assert_close(got, expected(values)[4:10], rtol=1e-6, atol=1e-6)
    later = means(store, values[10:], 10, [2], 1)
    torch.testing.assert_close(later, expected(values)[10:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", range(1, 12))
def test_a_chain_of_sequences_of_one_token_each(values: Tensor, count: int) -> None:
    """Every sequence of the pass goes on from the next one in it, and the last from nothing."""
    at = torch.arange(count - 1, -1, -1)
    found = sequences([*range(count + 1)], at.tolist(), (at - 1).tolist())
    got = extend(running_means(), values[at], at, found)
    torch.testing.assert_close(got, expected(values)[at], rtol=1e-6, atol=1e-6)
    values[0, 0] = torch.nan
    got = extend(RunningStates([Careless(), MEAN], CPU), values[at], at, found)
    assert got.isnan().tolist() == [[True, False]] * count


def test_sequences_that_go_on_from_each_other_are_not_finite(values: Tensor) -> None:
    """No engine says so; were it ever read so, no state would be of a whole sequence."""
    store = running_means()
    means(store, values, 0, [*range(11)], NOWHERE)
    got = extend(store, values[:4], torch.tensor([3, 5, 6, 2]), sequences([0, 2, 4], [13, 4, 14, 3], [3, 4]))
    assert bool(got.isnan().all())


def test_padding_and_sequences_without_tokens(values: Tensor) -> None:
    found = sequences([0, 0, 4, 4, 6, 6], [0, 1, 2, 3, 8, 9, 9, 9], [5, NOWHERE, 99, NOWHERE, NOWHERE])
    store = running_means()
    got = extend(store, values[:8], torch.tensor([0, 1, 2, 3, 0, 1, 77, -5]), found)
    torch.testing.assert_close(got[:4], expected(values)[:4])
    torch.testing.assert_close(got[4:6], expected(values[4:])[:2])
    assert bool(got[6:].isnan().all())
    torch.testing.assert_close(means(store, values[6:8], 2, [20, 21], 9), expected(values[4:])[2:4])


@pytest.mark.parametrize("bounds", [[0], [0, 0]])
def test_a_pass_of_padding_alone(values: Tensor, bounds: list[int]) -> None:
    found = sequences(bounds, [NOWHERE] * 2, [NOWHERE] * (len(bounds) - 1))
    assert bool(extend(running_means(), values[:2], torch.arange(2), found).isnan().all())


def test_a_pass_for_nobody_keeps_nothing(values: Tensor) -> None:
    store = RunningStates([MEAN, TOKEN], CPU)
    got = extend(store, values, torch.arange(11), None)
    assert bool(got[:, 0].isnan().all())
    assert torch.equal(got[:, 1], values[:, 1])
    assert len(extend(store, values[:0], torch.arange(0), None)) == 0


def test_a_sequence_that_is_not_sound_spoils_what_goes_on_from_it(values: Tensor) -> None:
    """In the same pass and in later ones; and no other sequence."""
    store, at = running_means(), torch.tensor([4, 5, 0, 1, 2, 3, 0, 1])
    slots, previous = [4, 5, 0, 1, 2, 3, 20, 21], [3, NOWHERE, NOWHERE]
    found = sequences([0, 2, 6, 8], slots, previous, [True, False, True])
    got = extend(store, values[at], at, found)
    assert got.isnan().all(dim=1).tolist() == [True] * 6 + [False] * 2
    assert bool(means(store, values[4:5], 4, [30], 3).isnan().all())
    got = extend(store, values[at], at, sequences([0, 2, 6, 8], slots, previous))
    torch.testing.assert_close(got, expected(values)[at], msg="positive control: whole where all are sound")


def test_bounds_beyond_the_tokens_are_not_sound(values: Tensor) -> None:
    got = extend(running_means(), values[:4], torch.tensor([0, 1, 0, 1]), sequences([0, 2, 5], [*range(4)], [-1, -1]))
    assert got.isnan().all(dim=1).tolist() == [False, False, True, True]


def test_only_what_was_reserved_is_there_unless_it_grows(values: Tensor) -> None:
    store, unseen = running_means(), partial(means, looks=False)
    store.reserve(4)
    torch.testing.assert_close(unseen(store, values[:4], 0, [0, 1, 2, 3], NOWHERE), expected(values)[:4])
    with pytest.raises(IndexError):
        unseen(store, values[:1], 0, [4], NOWHERE)
    with pytest.raises(IndexError):
        unseen(store, values[:1], 4, [NOWHERE], 4)
    store.reserve(5)
    store.reserve(2)
    torch.testing.assert_close(unseen(store, values[4:5], 4, [4], 3), expected(values)[4:5], rtol=1e-6, atol=1e-6)


def test_the_same_whatever_the_order_of_rows_that_share_a_slot(values: Tensor) -> None:
    """Several tokens that are not kept are given one slot by some caches; nobody goes on from it."""
    store = running_means()
    found = sequences([0, 3, 6], [7, 7, 0, 7, 7, 1], [NOWHERE, NOWHERE])
    got = extend(store, values[:6], torch.tensor([0, 1, 2, 0, 1, 2]), found)
    torch.testing.assert_close(got, torch.cat([expected(values)[:3], expected(values[3:])[:3]]))
    torch.testing.assert_close(means(store, values[6:7], 3, [2], 1), expected(values[3:])[3:4], rtol=1e-6, atol=1e-6)


def test_a_slot_is_written_once_in_a_pass() -> None:
    """With the last of its positions: where several rows were written to one, a GPU might keep any."""
    slots_T, positions_T = torch.tensor([7, 5, 7, 5, -1, 7]), torch.tensor([2, 9, 4, 8, 3, 1])
    written_T, _ = _written(slots_T, positions_T, torch.tensor([0, 6]), sequences([0, 6], [], [NOWHERE]))
    assert written_T.tolist() == [-1, 5, 7, -1, -1, -1]
    assert sorted(written_T.tolist())[:4] == [NOWHERE] * 4


class Careless(Mean):
    """A strategy that takes a NaN for 0."""

    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        return super().join(before_NCK.nan_to_num(), after_NCK.nan_to_num())

    def read(self, values_TC: Tensor, state_TCK: Tensor) -> Tensor:
        return super().read(values_TC, state_TCK.nan_to_num())


@pytest.mark.parametrize("strategy", [*STRATEGIES, Careless()])
def test_no_strategy_can_hide_a_value_that_is_not_finite(strategy: OverTokens, values: Tensor) -> None:
    store, packed = RunningStates([strategy, LEAST], CPU), values.clone()
    packed[1, 0] = torch.nan
    finite = [True, not strategy.width, not strategy.width]
    found = sequences([0, 3], [0, 1, 2], [NOWHERE])
    got = torch.cat([extend(store, packed[:3], torch.arange(3), found)[::2], means(store, values[3:4], 3, [3], 2)])
    assert torch.isfinite(got[:, 0]).tolist() == finite
    assert bool(torch.isfinite(got[:, 1]).all())
    assert torch.isfinite(means(store, values[3:4], 3, [3], 9)).tolist() == [[not strategy.width, False]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_is_a_value(strategy: OverTokens) -> None:
    again = pickle.loads(pickle.dumps(strategy))
    assert again == strategy
    assert hash(again) == hash(strategy)
    assert sum(each == strategy for each in STRATEGIES) == 1


@pytest.mark.parametrize("strategy", [*STRATEGIES, Rise(0.5, written=False), MessageMean(2, written=False)])
def test_a_scan_says_what_joining_one_by_one_says(strategy: OverTokens) -> None:
    """Bit for bit where values are whole eighths, whose sums are exact."""
    value_TC = (torch.randn(300, 2, generator=torch.Generator().manual_seed(4)) * 64).round() / 8
    start_T = torch.tensor([0] * 5 + [5] * 1 + [6] * 17 + [23] * 128 + [151] * 149)
    state_TCK = strategy.lift(value_TC, one_message(torch.arange(300)))
    one_by_one = state_TCK.clone()
    for row in range(1, 300):
        if row != start_T[row]:
            one_by_one[row] = strategy.join(one_by_one[row - 1, None], state_TCK[row, None])[0]
    assert torch.equal(scan(strategy, state_TCK, start_T), one_by_one)
