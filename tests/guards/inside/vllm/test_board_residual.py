"""The residual stream on a board: vLLM's blocks hand it on in two tensors, and guards read their sum."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from guards.contract.guard import OverRanks
from guards.errors import GuardReadingError
from guards.inside.vllm.board import Board
from guards.model.shard import WHOLE, Shard
from guards.model.sites import Site
from tests.guards.contract.running import sequences
from tests.guards.inside.vllm.imitation import LlamaForCausalLM, on_ranks, sliced
from tests.guards.inside.vllm.test_board import IDS, board_on, codes, over_ranks, parts, probe, run

FOUND = sequences([0, 3, 4, 5], [32, 33, 34, 64, 7], [-1, -1, -1])
"""Three tokens of a sequence and one each of two others."""


@torch.no_grad()
def residuals(model: LlamaForCausalLM) -> list[Tensor]:
    """The residual stream after every block, of a model that keeps it in one tensor."""
    x, found = model.model.embed_tokens(IDS), []
    block: Any
    for block in model.model.layers:
        x = block.self_attn(x) + block.mlp(x) + x
        found.append(x)
    return found


def scores(model: LlamaForCausalLM, *layers: int) -> Tensor:
    """What the probe says of every token by itself, float32 [T]."""
    guard, found = probe(*layers), residuals(model)
    shares = [found[layer].float() @ guard.weight_LD[i] for i, layer in enumerate(guard.layers)]
    return torch.stack(shares).sum(dim=0) + guard.offset


def least(score_T: Tensor) -> Tensor:
    """The smallest so far, in the sequences of `FOUND`."""
    return torch.cat([score_T[:3].cummin(0).values, score_T[3:]])


def test_the_whole_model_goes_on_with_the_sum() -> None:
    """Positive control of the imitation: what it gives in the end is the residual stream after its last block."""
    model = LlamaForCausalLM()
    assert torch.equal(run(model), residuals(model)[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", [(0,), (1,), (2,), (0, 2)])
def test_a_detector_reads_the_sum(layers: tuple[int, ...], dtype: torch.dtype) -> None:
    model = LlamaForCausalLM().to(dtype)
    wanted, plain = least(scores(model, *layers)), run(model)
    board = board_on(model, WHOLE, dtype, FOUND, probe=probe(*layers))
    hidden, rows_RX = board.split(run(model))
    torch.testing.assert_close(parts(board, rows_RX, "probe")[:, 0], wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(hidden, plain)
    assert len(set(wanted.tolist())) > 2


def test_two_ranks_say_what_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has all of it, so that nothing is added up."""
    whole = LlamaForCausalLM()

    def of_rank(rank: int) -> tuple[Board, Tensor]:
        part = sliced(whole, rank, 2)
        board = board_on(part, Shard(rank, 2), torch.float32, FOUND, probe=probe())
        return board, board.split(run(part))[1]

    for board, rows_RX in on_ranks(monkeypatch, [partial(of_rank, rank) for rank in range(2)]):
        assert {each.column.over_ranks for each in board.columns.all} == {OverRanks.SAME}
        assert {each.column.place.site for each in board.columns.all} == {Site.RESIDUAL}
        torch.testing.assert_close(parts(board, rows_RX, "probe")[:, 0], least(scores(whole)), rtol=1e-4, atol=1e-4)
        assert codes(board, rows_RX).shape == (5, 1)


def test_both_ranks_sample_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows_RX = over_ranks(monkeypatch, LlamaForCausalLM(), probe=probe(1))
    assert torch.isfinite(rows_RX).tolist() == [[True], [False]], "the second goes on from what nobody wrote"


@pytest.mark.parametrize("given", [torch.zeros(5, 16), (torch.zeros(5, 16),)])
def test_a_block_that_gives_something_else_is_an_error(given: Any) -> None:
    model = LlamaForCausalLM()
    board_on(model, probe=probe())
    block: Any = model.model.layers[2]
    block.forward = lambda *_: given
    with pytest.raises(GuardReadingError, match=r"from a block, wanted \(hidden, residual\)"):
        run(model)
