"""Activations of several processes, put together again."""

import pytest
import torch
from torch import Tensor

from guards.errors import AttachError
from server.engines.vllm.slices import Slice, assemble, plan_groups

ROWS = torch.tensor([(0, 0), (0, 1), (3, 7)])
X = torch.arange(18, dtype=torch.float32).view(3, 6)


def _slice(index: int, rows: Tensor, x: Tensor) -> Slice:
    return index, rows.numpy().tobytes(), x.contiguous().view(torch.uint8).numpy().tobytes()


def _assembled(slices: list[Slice | None], dtype: torch.dtype = torch.float32) -> Tensor:
    return assemble(slices, ROWS, 6, dtype, layer=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranks_are_joined_by_their_slice_and_rows_by_position(dtype: torch.dtype) -> None:
    order = torch.tensor([2, 0, 1])
    x = X.to(dtype)
    parts = [_slice(1, ROWS[order], x[order, 3:]), None, _slice(0, ROWS[order], x[order, :3])]
    assert torch.equal(_assembled(parts, dtype), x)


def test_of_a_row_that_came_twice_the_later_one_is_taken() -> None:
    again = torch.cat([ROWS[:2], ROWS])
    assert torch.equal(_assembled([_slice(0, again, torch.cat([X[:2] + 1, X]))]), X)


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([None, None], "no rank of vLLM holds layer 2"),
        ([_slice(0, ROWS[:2], X[:2])], "the activations of 2 tokens, wanted 3"),
        ([_slice(0, torch.cat([ROWS, ROWS[:1] + 1]), torch.cat([X, X[:1]]))], "the activations of 4 tokens, wanted 3"),
        ([_slice(0, ROWS + 1, X)], "the activations of 3 tokens, wanted 3 others"),
        ([_slice(0, ROWS, X[:, :3]), _slice(1, ROWS + 1, X[:, 3:])], "ran different tokens"),
        ([_slice(0, ROWS, X[:, :3])], "got 3 neurons over vLLM's ranks, wanted 6"),
    ],
)
def test_what_does_not_fit_is_an_error(slices: list[Slice | None], message: str) -> None:
    with pytest.raises(AttachError, match=message):
        _assembled(slices)


def test_groups_hold_every_example_once_within_the_budget() -> None:
    assert plan_groups([3, 3, 5, 12, 1, 0], 6) == [[0, 1], [2], [3], [4, 5]]
    assert plan_groups([2, 2], 0) == [[0], [1]]
    assert plan_groups([], 6) == []
