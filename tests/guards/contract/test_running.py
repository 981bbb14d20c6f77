"""Running means: what they are of, and what they never hide."""

import pytest
import torch
from torch import Tensor

from guards.contract.running import HUGE, RunningMeans

NOWHERE = -1


def means(store: RunningMeans, values: Tensor, first: int, slots: list[int], previous: int) -> Tensor:
    """One sequence's next tokens, the first of them at position `first`."""
    positions_T = torch.arange(first, first + len(values))
    return store.extend(values, positions_T, torch.tensor([0]), torch.tensor(slots), torch.tensor([previous]))


@pytest.fixture
def values() -> Tensor:
    return torch.randn(11, 2, generator=torch.Generator().manual_seed(3))


def expected(values: Tensor) -> Tensor:
    return values.double().cumsum(0).div(torch.arange(1, len(values) + 1)[:, None]).float()


@pytest.mark.parametrize("cuts", [(11,), (4, 7), (1, 1, 1, 8), (10, 1)])
def test_a_sequence_in_pieces_has_the_means_of_the_whole(values: Tensor, cuts: tuple[int, ...]) -> None:
    store, got, at = RunningMeans(2, torch.device("cpu")), [], 0
    for size in cuts:
        slots = list(range(at, at + size))
        got.append(means(store, values[at : at + size], at, slots, at - 1 if at else NOWHERE))
        at += size
    torch.testing.assert_close(torch.cat(got), expected(values), rtol=1e-6, atol=1e-6)


def test_sequences_of_one_pass_do_not_mix(values: Tensor) -> None:
    store = RunningMeans(2, torch.device("cpu"))
    means(store, values[:4], 0, [40, 41, 42, 43], NOWHERE)
    packed = torch.cat([values[4:6], values, values[:1]])
    positions_T = torch.tensor([4, 5, *range(11), 0])
    starts_S, previous_S = torch.tensor([0, 2, 13]), torch.tensor([43, NOWHERE, NOWHERE])
    got = store.extend(packed, positions_T, starts_S, torch.arange(50, 64), previous_S)
    torch.testing.assert_close(got[:2], expected(values)[4:6], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got[2:13], expected(values), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got[13:], values[:1], rtol=1e-6, atol=1e-6)


def test_another_request_goes_on_from_a_cached_prefix(values: Tensor) -> None:
    store = RunningMeans(2, torch.device("cpu"))
    means(store, values[:6], 0, list(range(6)), NOWHERE)
    got = means(store, values[4:], 4, list(range(20, 27)), 3)
    torch.testing.assert_close(got, expected(values)[4:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("previous", [9, 10_000])
def test_what_nobody_wrote_is_not_finite(values: Tensor, previous: int) -> None:
    store = RunningMeans(2, torch.device("cpu"))
    means(store, values[:3], 0, [0, 1, 2], NOWHERE)
    assert bool(torch.isnan(means(store, values[3:5], 3, [3, 4], previous)).all())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 2 * HUGE])
def test_a_value_that_is_not_finite_stays_and_hurts_no_other(values: Tensor, bad: float) -> None:
    store = RunningMeans(2, torch.device("cpu"))
    packed, positions_T = torch.cat([values[:4], values]), torch.tensor([*range(4), *range(11)])
    packed[2, 0] = bad
    starts_S, none_S = torch.tensor([0, 4]), torch.tensor([NOWHERE, NOWHERE])
    got = store.extend(packed, positions_T, starts_S, torch.arange(15), none_S)
    assert torch.isfinite(got[:4]).tolist() == [[True, True], [True, True], [False, True], [False, True]]
    torch.testing.assert_close(got[4:], expected(values), rtol=1e-6, atol=1e-6)
    later = means(store, values[4:6], 4, [20, 21], 3)
    assert torch.isfinite(later).tolist() == [[False, True]] * 2, "it is in every later mean of its sequence"


def test_a_slot_below_zero_is_not_kept(values: Tensor) -> None:
    store = RunningMeans(2, torch.device("cpu"))
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
    store = RunningMeans(2, torch.device("cpu"))
    means(store, torch.full((11, 2), 50.0), 0, list(range(11)), NOWHERE)
    at = torch.tensor([row for name in order for row in rows[name]])
    starts_S = torch.tensor([sum(len(rows[name]) for name in order[:i]) for i in range(3)])
    previous_S = torch.tensor([first[name] - 1 for name in order])
    got = store.extend(values[at], at, starts_S, at, previous_S)
    torch.testing.assert_close(got, expected(values)[at], rtol=1e-6, atol=1e-6)
    later = means(store, values[6:], 6, list(range(20, 25)), 5)
    torch.testing.assert_close(later, expected(values)[6:], rtol=1e-6, atol=1e-6)


def test_a_slot_of_a_ring_is_not_taken_for_a_later_token(values: Tensor) -> None:
    """A window of four tokens: this pass writes slot 3, where the token before lies, for a later position."""
    store = RunningMeans(2, torch.device("cpu"))
    means(store, values[:4], 0, [0, 1, 2, 3], NOWHERE)
    got = means(store, values[4:10], 4, [0, 1, 2, 3, 0, 1], 3)
    torch.testing.assert_close(got, expected(values)[4:10], rtol=1e-6, atol=1e-6)
