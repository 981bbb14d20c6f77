"""Pooled guards on a board: running means where the pass's sequences lie, the same however the model is split."""

import copy

import pytest
import torch
from torch import Tensor

from guards.contract.accumulate import Sequences
from guards.contract.guard import Guard
from guards.core.verdict import Reading
from guards.inside.vllm import board as vllm_board
from guards.inside.vllm.board import Board
from guards.methods.pooled.guard import PooledGuard
from guards.model.shard import WHOLE, Shard
from tests.guards.inside.vllm.imitation import LlamaForCausalLM, PPMissingLayer, Stage, sliced
from tests.guards.inside.vllm.test_board import IDS, POSITIONS, ROWS, board_on, keys, run, sequences
from tests.guards.samples import cube, cubes, neuron_adjust, pooled

FOUND = sequences([0, 3, 4, 5], [32, 33, 34, 64, 7], [-1, -1, 34])
"""Three tokens and one of new sequences, and one that goes on from slot 34, which another pass wrote."""
EVERY = torch.arange(5)


def values(model: LlamaForCausalLM, guard: PooledGuard) -> Tensor:
    """Every token's own value, float32 [T], from key vectors read without a board."""
    return torch.stack([keys(model, term.layer).float() @ term.weight_F - term.offset for term in guard.terms]).sum(0)


def means(model: LlamaForCausalLM, board: Board) -> Tensor:
    """The scores of the guard "mean" at every token of a pass."""
    return board.cells.parts(board.split(run(model))[1], "mean")[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_means_are_over_each_sequences_tokens_so_far(dtype: torch.dtype) -> None:
    model, guard = LlamaForCausalLM().to(dtype), pooled(0, 2)
    value_T = values(model, guard)
    board = board_on(model, WHOLE, dtype, FOUND, mean=guard, sums=cubes(cube(2)))
    first = means(model, board)
    wanted = [value_T[0], value_T[:2].mean(), value_T[:3].mean(), value_T[3]]
    torch.testing.assert_close(first[:4], torch.stack(wanted), rtol=1e-4, atol=1e-5)
    assert bool(first[4].isnan()), "nobody had written slot 34 when this pass began"
    second = means(model, board)
    # At position 7 a sum of eight tokens' values is divided by eight, whatever was in the slot of the seventh.
    torch.testing.assert_close(second[4], (value_T[:3].sum() + value_T[4]) / 8, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second[:4], first[:4])


@pytest.mark.parametrize(
    ("found", "finite"),
    [
        (None, []),
        (sequences([0, 3], [32, 33, 34, -1, -1], [-1]), [0, 1, 2]),
    ],
    ids=["a pass for nobody", "padding behind a sequence"],
)
def test_a_row_without_a_sequence_is_no_pass(found: Sequences | None, finite: list[int]) -> None:
    model = LlamaForCausalLM()
    board = board_on(model, WHOLE, torch.float32, found, mean=pooled(0, 2, tau=1e-6), sums=cubes(*map(cube, (0, 2))))
    _, cells = board.split(run(model))
    assert torch.isfinite(board.cells.parts(cells, "mean"))[:, 0].nonzero().flatten().tolist() == finite
    assert bool(torch.isfinite(board.cells.parts(cells, "sums")).all()), "a cube needs no sequence"
    invalid = (board.cells.codes(cells)[:, 0] == int(Reading.INVALID)).nonzero().flatten().tolist()
    assert invalid == [row for row in EVERY.tolist() if row not in finite]


def test_a_layer_that_was_not_heard_of_is_no_pass() -> None:
    model = LlamaForCausalLM()
    board = board_on(model, mean=pooled(0, 2))
    assert bool(torch.isfinite(means(model, board)[:4]).all())
    model.model.layers[2].mlp.down_proj._forward_pre_hooks.clear()  # type: ignore[union-attr]
    assert bool(torch.isnan(means(model, board)).all())


def kept_apart(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Has boards hand over their own slice's cells, which end up in the list."""
    kept: list[Tensor] = []

    def keep(_: Board, cells: Tensor) -> Tensor:
        kept.append(cells.clone())
        return cells

    monkeypatch.setattr(Board, "_over_ranks", keep)
    return kept


def test_two_ranks_say_what_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """At layer 0, where both ranks have the whole layer's inputs; each keeps sums of its own slice."""
    whole = LlamaForCausalLM()
    guards: dict[str, Guard] = {"mean": pooled(0), "sums": cubes(cube(0))}
    ranks = [sliced(whole, rank, 2) for rank in range(2)]
    one = board_on(whole, **guards)
    boards = [board_on(part, Shard(rank, 2), **guards) for rank, part in enumerate(ranks)]
    for _ in range(2):
        wanted = one.split(run(whole)[:4])[1]
        with monkeypatch.context() as patch:
            kept = kept_apart(patch)
            for board, part in zip(boards, ranks, strict=True):
                board.split(run(part)[:4])
        joined = one.cells.over_ranks(torch.stack(kept))
        torch.testing.assert_close(joined, wanted, rtol=1e-5, atol=1e-6)
        assert bool((kept[0] - kept[1]).abs().max() > 0.01), "positive control: the slices differ"


def stages(whole: LlamaForCausalLM) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A stage with layer 0 and one with layers 1 and 2."""
    first, second = copy.deepcopy(whole), copy.deepcopy(whole)
    first.last = False
    first.model.layers[1] = first.model.layers[2] = PPMissingLayer()
    second.model.layers[0] = PPMissingLayer()
    return first, second


def test_two_stages_say_what_one_says() -> None:
    whole = LlamaForCausalLM()
    first, second = stages(whole)
    guards: dict[str, Guard] = {"mean": pooled(0, 2), "sums": cubes(cube(0), cube(2)), "shift": neuron_adjust()}
    one, begin, end = (board_on(model, WHOLE, torch.float32, FOUND, **guards) for model in (whole, first, second))
    for time in range(2):
        wanted = one.split(run(whole))[1]
        sent: Stage = run(first)
        of_second = [i for i in begin.cells.pooled if begin.cells.all[i].place.layer == 2]
        assert bool(sent.tensors[vllm_board.TENSOR_KEY][:, of_second].isnan().all()), "these are not known yet"
        cells = end.split(run(second, intermediate_tensors=sent))[1]
        torch.testing.assert_close(cells, wanted, equal_nan=True)
        assert torch.isfinite(cells).all(dim=1).tolist() == [True] * 4 + [time == 1]


@pytest.mark.parametrize("broken", [False, True])
def test_what_a_stage_sends_to_two_ranks_is_counted_once(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stage sends was summed over its ranks before; a NaN in it reaches the end all the same."""
    whole = LlamaForCausalLM()
    first, _ = stages(whole)
    guards: dict[str, Guard] = {"mean": pooled(0, 1), "sums": cubes(cube(0), cube(1))}
    one, begin = board_on(whole, **guards), board_on(first, **guards)
    wanted = one.split(run(whole)[ROWS[:1]])[1]
    sent: Stage = run(first)
    at_first = begin.cells.pooled[0]
    if broken:
        sent.tensors[vllm_board.TENSOR_KEY][:, at_first] = torch.nan
    kept = kept_apart(monkeypatch)
    for rank in range(2):
        part = sliced(whole, rank, 2)
        part.model.layers[0] = PPMissingLayer()
        board = board_on(part, Shard(rank, 2), **guards)
        mine = Stage({key: tensor.clone() for key, tensor in sent.tensors.items()})
        board.split(run(part, intermediate_tensors=mine)[ROWS[:1]])
    joined = one.cells.over_ranks(torch.stack(kept))
    if broken:
        assert torch.isnan(joined).nonzero().tolist() == [[0, at_first]]
    else:
        torch.testing.assert_close(joined, wanted, rtol=1e-5, atol=1e-6)


def test_positions_are_those_of_the_pass() -> None:
    """Positive control for the means above: another position divides by another count."""
    model, guard = LlamaForCausalLM(), pooled(0, 2)
    board = board_on(model, WHOLE, torch.float32, FOUND, mean=guard)
    plain = means(model, board)
    with torch.no_grad():
        moved = model(input_ids=IDS, positions=POSITIONS + 1)
    torch.testing.assert_close(board.cells.parts(board.split(moved)[1], "mean")[0, 0], plain[0] / 2)
