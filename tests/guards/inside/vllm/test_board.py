"""Cells that ride with their tokens: written inside the blocks, taken off the rows that are sampled."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import LlamaConfig

from guards.contract.accumulate import Sequences
from guards.contract.guard import Guard
from guards.core.verdict import Reading
from guards.errors import AttachError, GuardReadingError
from guards.inside.vllm import board as vllm_board
from guards.inside.vllm.board import Board
from guards.inside.vllm.sites import find_local_sites
from guards.methods.cube.guard import cube_score
from guards.model.shard import WHOLE, Shard
from tests.guards.attached import entry
from tests.guards.inside.vllm.imitation import D_ATTENTION, LlamaForCausalLM, PPMissingLayer, Stage, sliced
from tests.guards.samples import cube, cubes, neuron_adjust, pruned
from tests.models import D_FF, D_MODEL

IDS, POSITIONS = torch.tensor([3, 9, 27, 4, 50]), torch.tensor([0, 1, 2, 0, 7])
ROWS = torch.tensor([2, 4])


def sequences(bounds: list[int], slots: list[int], previous: list[int]) -> Sequences:
    """Sound ones."""
    sound_S = torch.ones(len(previous), dtype=torch.bool)
    return Sequences(torch.tensor(bounds), torch.tensor(slots), torch.tensor(previous), sound_S)


SEQUENCES = sequences([0, 3, 4, 5], [32, 33, 34, 64, 7], [-1, -1, 6])
"""Three tokens and one of new sequences, and one that goes on from slot 6."""
CUBES = (cube(0, seed=1), cube(2, seed=2), cube(2, seed=3))


def board_on(
    model: nn.Module,
    shard: Shard = WHOLE,
    dtype: torch.dtype = torch.float32,
    found: Sequences | None = SEQUENCES,
    /,
    **guards: Guard,
) -> Board:
    chosen = {name: entry(guard) for name, guard in guards.items()}
    board = Board(
        find_local_sites(model, LlamaConfig(num_hidden_layers=3)),
        chosen,
        shard=shard,
        find_sequences=lambda _: found,
        tokens=8,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    board.surround(model)
    return board


@torch.no_grad()
def run(model: nn.Module, **more: Any) -> Any:
    return model(input_ids=IDS, positions=POSITIONS, **more)


def down(model: LlamaForCausalLM, layer: int) -> Any:
    """The module that takes a layer's key vectors."""
    block: Any = model.model.layers[layer]
    return block.mlp.down_proj


def keys(model: LlamaForCausalLM, layer: int) -> Tensor:
    """The key vectors of a layer, read without a board."""
    kept: list[Tensor] = []
    handle = down(model, layer).register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    run(model)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_arrive_bit_for_bit_whatever_the_model_is_in(dtype: torch.dtype) -> None:
    model = LlamaForCausalLM().to(dtype)
    wanted = [cube_score(keys(model, each.layer), each.mean_F, each.std_F.reciprocal())[ROWS] for each in CUBES]
    plain = run(model)
    board = board_on(model, WHOLE, dtype, sums=cubes(*CUBES))
    hidden, cells = board.split(run(model)[ROWS])
    assert torch.equal(hidden, plain[ROWS])
    assert cells.dtype is torch.float32
    assert torch.equal(cells, torch.stack(wanted, dim=1))


def test_two_ranks_say_what_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank sees its slice; joined, their cells are those of the whole layer."""
    whole = LlamaForCausalLM()
    # Only layer 0, where both models have the same inputs: these slices do not sum over ranks.
    chosen, mask = neuron_adjust(), pruned(D_ATTENTION)
    del chosen.layers_statistics[2]
    mask = replace(mask, feed_forward={0: torch.tensor([1, 20])}, attention={0: torch.tensor([0, 3, D_ATTENTION - 1])})
    guards: dict[str, Guard] = {"sums": cubes(cube(0, seed=1), cube(0, seed=2)), "shift": chosen, "mask": mask}
    ranks = [sliced(whole, rank, 2) for rank in range(2)]
    one = board_on(whole, **guards)
    _, wanted = one.split(run(whole)[ROWS])
    boards = [board_on(part, Shard(rank, 2), **guards) for rank, part in enumerate(ranks)]
    kept: list[Tensor] = []

    def keep(_: Board, cells: Tensor) -> Tensor:
        kept.append(cells)
        return cells

    monkeypatch.setattr(Board, "_over_ranks", keep)
    for board, part in zip(boards, ranks, strict=True):
        board.split(run(part)[ROWS])
    joined = one.cells.over_ranks(torch.stack(kept))
    assert torch.equal(joined, wanted)
    assert one.cells.parts(wanted, "mask").tolist() == [[5], [5]]
    assert float(one.cells.parts(wanted, "shift").sum()) > 0


def test_cells_travel_to_the_next_stage() -> None:
    whole = LlamaForCausalLM()
    first, second = copy.deepcopy(whole), copy.deepcopy(whole)
    first.last = False
    guards: dict[str, Guard] = {"sums": cubes(*CUBES), "shift": neuron_adjust(), "mask": pruned(D_ATTENTION)}
    board = board_on(whole, **guards)
    _, wanted = board.split(run(whole)[ROWS])
    first.model.layers[1] = first.model.layers[2] = PPMissingLayer()
    second.model.layers[0] = PPMissingLayer()
    board_on(first, **guards)
    last = board_on(second, **guards)
    sent: Stage = run(first)
    assert torch.isnan(sent.tensors[vllm_board.TENSOR_KEY]).any(), "the second stage's cells are not known yet"
    _, cells = last.split(run(second, intermediate_tensors=sent)[ROWS])
    assert torch.equal(cells, wanted)


def test_a_stage_that_brings_no_cells_is_an_error() -> None:
    model = LlamaForCausalLM()
    board_on(model, sums=cubes())
    with pytest.raises(KeyError, match=vllm_board.TENSOR_KEY):
        run(model, intermediate_tensors=Stage({"hidden": torch.zeros(5, D_MODEL)}))


def test_what_the_last_pass_said_does_not_stay() -> None:
    model = LlamaForCausalLM()
    board = board_on(model, sums=cubes(*CUBES))
    assert bool(torch.isfinite(board.split(run(model)[ROWS])[1]).all())
    down(model, 2)._forward_pre_hooks.clear()
    _, cells = board.split(run(model)[ROWS])
    assert torch.isfinite(cells).tolist() == [[True, False, False]] * 2


def test_an_intervention_changes_what_the_block_computes() -> None:
    model = LlamaForCausalLM()
    guard = neuron_adjust()
    plain = keys(model, 0)
    board_on(model, shift=guard)
    changed = keys(model, 0)
    touched = (plain != changed).any(dim=0).nonzero().flatten().tolist()
    assert set(touched) <= set(guard.layers_statistics[0].neurons_S.tolist())
    assert touched
    assert silu(torch.tensor(0.0)) == 0  # a gate of zero would hide a change


@pytest.mark.parametrize("order", [("mask", "sums", "shift"), ("shift", "sums", "mask")])
def test_pruning_is_a_zeroed_column_and_comes_before_detectors(order: tuple[str, ...]) -> None:
    model, by_hand = LlamaForCausalLM(), LlamaForCausalLM()
    by_hand.load_state_dict(model.state_dict())
    plain = run(model)
    mask, each = pruned(D_ATTENTION), cube(2, seed=2)
    guards: dict[str, Guard] = {"mask": mask, "sums": cubes(each), "shift": neuron_adjust()}
    board = board_on(model, **{name: guards[name] for name in order})
    board_on(by_hand, shift=neuron_adjust())
    block: Any
    for layer, block in enumerate(by_hand.model.layers):
        block.mlp.down_proj.weight.data[:, mask.feed_forward.get(layer, [])] = 0
        block.self_attn.o_proj.weight.data[:, mask.attention.get(layer, [])] = 0
    hidden, cells = board.split(run(model)[ROWS])
    torch.testing.assert_close(hidden, run(by_hand)[ROWS, :D_MODEL])
    assert not torch.allclose(hidden, plain[ROWS])  # positive control
    key_TF = keys(model, 2)
    assert bool((key_TF[:, mask.feed_forward[2]] == 0).all())
    wanted = cube_score(key_TF, each.mean_F, each.std_F.reciprocal())[ROWS]
    assert torch.equal(board.cells.parts(cells, "sums")[:, 0], wanted)
    assert board.cells.parts(cells, "mask").tolist() == [[8], [8]]


def test_a_value_that_is_not_finite_is_not_hidden_by_its_zero() -> None:
    model = LlamaForCausalLM()
    block: Any = model.model.layers[1]
    block.self_attn.v_proj.weight.data[2] = torch.inf
    board = board_on(model, mask=pruned(D_ATTENTION))
    hidden, cells = board.split(run(model)[ROWS])
    assert bool(torch.isfinite(hidden).all())
    assert board.cells.codes(cells).tolist() == [[Reading.INVALID]] * 2


def test_pruning_for_other_heads_is_refused() -> None:
    with pytest.raises(AttachError, match=f"got attention vectors of {D_ATTENTION} neurons, the guard was made for 16"):
        board_on(LlamaForCausalLM(), mask=pruned(16))


class Quantized:
    """What vLLM passes on where activation and quantisation are one kernel."""


@pytest.mark.parametrize("hidden", [Quantized(), torch.zeros(5, D_FF, dtype=torch.int8), torch.zeros(5, D_FF).half()])
def test_a_hidden_key_vector_is_refused(hidden: Any) -> None:
    model = LlamaForCausalLM()
    board_on(model, sums=cubes())
    with pytest.raises(GuardReadingError, match="fused"):
        down(model, 2).skillguard_key(hidden)


def test_layers_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(AttachError, match=r"layers \[3\]"):
        board_on(LlamaForCausalLM(), sums=cubes(cube(3)))


@pytest.mark.parametrize("positions", [None, torch.zeros(3, 5)])
def test_positions_are_needed(positions: Tensor | None) -> None:
    model = LlamaForCausalLM()
    board_on(model, sums=cubes())
    with pytest.raises(GuardReadingError, match="a position for every token"):
        model(input_ids=IDS, positions=positions)
