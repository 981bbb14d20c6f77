"""Rows that ride with their tokens: cells are written inside the blocks, rows taken off those that are sampled."""

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import LlamaConfig

from guards.contract.guard import Guard, default_rules
from guards.contract.slots import Sequences
from guards.contract.turn_finder import TurnFinder
from guards.core.policy import Policy
from guards.core.verdict import Reading, Scope
from guards.errors import AttachError, GuardReadingError
from guards.inside.vllm import board as vllm_board
from guards.inside.vllm.board import Board
from guards.inside.vllm.sites import find_local_sites
from guards.methods.cube.guard import cube_score
from guards.model.shard import WHOLE, Shard
from guards.model.sites import Site
from tests.guards.attached import entry
from tests.guards.contract.running import sequences
from tests.guards.inside.vllm.imitation import (
    D_ATTENTION,
    LlamaForCausalLM,
    PPMissingLayer,
    Stage,
    on_ranks,
    sliced,
)
from tests.guards.samples import cube, cubes, neuron_adjust, pruned
from tests.models import D_FF, D_MODEL
from tests.toys.probe.guard import ProbeGuard

IDS, POSITIONS = torch.tensor([3, 9, 27, 4, 50]), torch.tensor([0, 1, 2, 0, 7])
ROWS = torch.tensor([2, 4])


SEQUENCES = sequences([0, 3, 4, 5], [32, 33, 34, 64, 7], [-1, -1, 6])
"""Three tokens and one of new sequences, and one that goes on from slot 6."""
CUBES = (cube(0, seed=1), cube(2, seed=2), cube(2, seed=3))


def probe(*layers: int) -> ProbeGuard:
    """A detector in the residual stream after some layers, or after the first and the last."""
    layers = layers or (0, 2)
    weight_LD = torch.randn(len(layers), D_MODEL, generator=torch.Generator().manual_seed(4))
    return ProbeGuard(layers, weight_LD, 0.25)


def board_on(
    model: nn.Module,
    shard: Shard = WHOLE,
    dtype: torch.dtype = torch.float32,
    found: Sequences | None = SEQUENCES,
    off: Sequence[tuple[int, Collection[str]]] = (),
    /,
    **guards: Guard,
) -> Board:
    chosen = {name: entry(guard) for name, guard in guards.items()}
    board = Board(
        find_local_sites(model, LlamaConfig(num_hidden_layers=3)),
        chosen,
        shard=shard,
        find_sequences=lambda _: found,
        find_off=lambda: off,
        turns=TurnFinder([], torch.device("cpu")),
        tokens=8,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    board.surround(model)
    return board


@torch.no_grad()
def run(model: nn.Module, **more: Any) -> Any:
    return model(input_ids=IDS, positions=POSITIONS, **more)


def parts(board: Board, rows_RX: Tensor, name: str) -> Tensor:
    """The values of one guard's parts, float32 [R, P]."""
    policies = [Policy(default_rules(board.bound, dict.fromkeys(board.bound, Scope.BOTH)))] * len(rows_RX)
    readings = board.columns.readings(rows_RX, board.columns.taus(policies))
    return torch.tensor([of_row[name][1] for of_row in readings])


def codes(board: Board, rows_RX: Tensor) -> Tensor:
    """What every guard reads under its own rule, int8 [R, G]."""
    policy = Policy(default_rules(board.bound, dict.fromkeys(board.bound, Scope.BOTH)))
    return board.columns.read(board.columns.parts(rows_RX), board.columns.taus([policy]))


def over_ranks(patch: pytest.MonkeyPatch, whole: LlamaForCausalLM, /, **guards: Guard) -> Tensor:
    """The sampled rows of a pass, [R, X], as two ranks have them; both have the same."""

    def of_rank(rank: int) -> Tensor:
        part = sliced(whole, rank, 2)
        board = board_on(part, Shard(rank, 2), **guards)
        return board.split(run(part)[ROWS])[1]

    mine, other = on_ranks(patch, [partial(of_rank, rank) for rank in range(2)])
    torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)
    return mine


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
    hidden, rows_RX = board.split(run(model)[ROWS])
    assert torch.equal(hidden, plain[ROWS])
    assert rows_RX.dtype is torch.float32
    assert torch.equal(rows_RX, torch.stack(wanted, dim=1))


def test_two_ranks_say_what_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank sees its slice; joined, their rows are those of the whole layer."""
    whole = LlamaForCausalLM()
    # To the last bit at layer 0, where both models have the same inputs: sums over ranks round in another order.
    chosen, mask = neuron_adjust(), pruned(D_ATTENTION)
    del chosen.layers_statistics[2]
    mask = replace(mask, feed_forward={0: torch.tensor([1, 20])}, attention={0: torch.tensor([0, 3, D_ATTENTION - 1])})
    guards: dict[str, Guard] = {"sums": cubes(cube(0, seed=1), cube(0, seed=2)), "shift": chosen, "mask": mask}
    joined = over_ranks(monkeypatch, whole, **guards)
    one = board_on(whole, **guards)
    _, wanted = one.split(run(whole)[ROWS])
    assert torch.equal(joined, wanted)
    assert parts(one, wanted, "mask").tolist() == [[5], [5]]
    assert float(parts(one, wanted, "shift").sum()) > 0


def test_two_ranks_say_what_one_says_in_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LlamaForCausalLM()
    guards: dict[str, Guard] = {"sums": cubes(*CUBES), "shift": neuron_adjust(), "mask": pruned(D_ATTENTION)}
    joined = over_ranks(monkeypatch, whole, **guards)
    one = board_on(whole, **guards)
    _, wanted = one.split(run(whole)[ROWS])
    torch.testing.assert_close(joined, wanted, rtol=1e-4, atol=1e-4)
    assert parts(one, joined, "mask").tolist() == [[8], [8]]
    assert torch.equal(parts(one, joined, "shift"), parts(one, wanted, "shift"))


@pytest.mark.parametrize("site", [Site.KEY, Site.RESIDUAL])
@pytest.mark.parametrize("rank", range(2))
def test_a_site_that_did_not_run_on_one_rank_is_no_pass_on_any(
    site: Site, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = LlamaForCausalLM()
    guard = cubes(cube(2)) if site is Site.KEY else probe()

    def of_rank(index: int) -> Tensor:
        part = sliced(whole, index, 2)
        board = board_on(part, Shard(index, 2), guard=guard)
        if index == rank:
            block: Any = part.model.layers[2]
            hooks = block.mlp.down_proj._forward_pre_hooks if site is Site.KEY else block._forward_hooks
            assert hooks
            hooks.clear()
        return codes(board, board.split(run(part)[ROWS])[1])

    for code_RG in on_ranks(monkeypatch, [partial(of_rank, index) for index in range(2)]):
        assert code_RG.tolist() == [[Reading.INVALID]] * 2


def test_cells_travel_to_the_next_stage() -> None:
    whole = LlamaForCausalLM()
    first, second = copy.deepcopy(whole), copy.deepcopy(whole)
    first.last = False
    guards: dict[str, Guard] = {
        "sums": cubes(*CUBES),
        "shift": neuron_adjust(),
        "mask": pruned(D_ATTENTION),
        "probe": probe(),
    }
    board = board_on(whole, **guards)
    _, wanted = board.split(run(whole)[ROWS])
    assert torch.isfinite(wanted).all(dim=1).tolist() == [True, False], "the second goes on from what nobody wrote"
    first.model.layers[1] = first.model.layers[2] = PPMissingLayer()
    second.model.layers[0] = PPMissingLayer()
    board_on(first, **guards)
    last = board_on(second, **guards)
    sent: Stage = run(first)
    assert torch.isnan(sent.tensors[vllm_board.TENSOR_KEY]).any(), "the second stage's cells are not known yet"
    _, rows_RX = last.split(run(second, intermediate_tensors=sent)[ROWS])
    torch.testing.assert_close(rows_RX, wanted, rtol=0, atol=0, equal_nan=True)


def test_a_stage_that_brings_no_cells_is_an_error() -> None:
    model = LlamaForCausalLM()
    board_on(model, sums=cubes())
    with pytest.raises(KeyError, match=vllm_board.TENSOR_KEY):
        run(model, intermediate_tensors=Stage({"hidden": torch.zeros(5, D_MODEL), "residual": torch.zeros(5, D_MODEL)}))


def test_what_the_last_pass_said_does_not_stay() -> None:
    model = LlamaForCausalLM()
    board = board_on(model, sums=cubes(*CUBES))
    assert bool(torch.isfinite(board.split(run(model)[ROWS])[1]).all())
    down(model, 2)._forward_pre_hooks.clear()
    _, rows_RX = board.split(run(model)[ROWS])
    assert codes(board, rows_RX).tolist() == [[Reading.INVALID]] * 2
    assert torch.isfinite(rows_RX).tolist() == [[True, False, False]] * 2


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
    each.std_F[mask.feed_forward[2]] = 1e-3  # a pruned neuron decides, as it is before or after
    guards: dict[str, Guard] = {"mask": mask, "sums": cubes(each), "shift": neuron_adjust()}
    board = board_on(model, **{name: guards[name] for name in order})
    board_on(by_hand, shift=neuron_adjust())
    block: Any
    for layer, block in enumerate(by_hand.model.layers):
        block.mlp.down_proj.weight.data[:, mask.feed_forward.get(layer, [])] = 0
        block.self_attn.o_proj.weight.data[:, mask.attention.get(layer, [])] = 0
    hidden, rows_RX = board.split(run(model)[ROWS])
    torch.testing.assert_close(hidden, run(by_hand)[ROWS, :D_MODEL])
    assert not torch.allclose(hidden, plain[ROWS])  # positive control
    key_TF = keys(model, 2)
    assert bool((key_TF[:, mask.feed_forward[2]] == 0).all())
    wanted = cube_score(key_TF, each.mean_F, each.std_F.reciprocal())[ROWS]
    assert torch.equal(parts(board, rows_RX, "sums")[:, 0], wanted)
    unpruned = cube_score(keys(by_hand, 2), each.mean_F, each.std_F.reciprocal())[ROWS]
    assert bool(((wanted - unpruned).abs() > 1).all()), "positive control"
    assert parts(board, rows_RX, "mask").tolist() == [[8], [8]]


def test_a_value_that_is_not_finite_is_not_hidden_by_its_zero() -> None:
    model = LlamaForCausalLM()
    block: Any = model.model.layers[1]
    block.self_attn.v_proj.weight.data[2] = torch.inf
    board = board_on(model, mask=pruned(D_ATTENTION))
    hidden, rows_RX = board.split(run(model)[ROWS])
    assert bool(torch.isfinite(hidden).all())
    assert codes(board, rows_RX).tolist() == [[Reading.INVALID]] * 2


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
        down(model, 2)(hidden)


def test_layers_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(AttachError, match=r"layers \[3\]"):
        board_on(LlamaForCausalLM(), sums=cubes(cube(3)))


def test_of_positions_in_three_dimensions_one_counts() -> None:
    """Models that also see have them; of a text all three are the same."""
    rows = []
    for positions in (torch.arange(5), torch.arange(5).expand(3, 5)):
        torch.manual_seed(0)
        model = LlamaForCausalLM()
        board = board_on(model, sums=cubes())
        rows.append(board.split(model(input_ids=IDS, positions=positions))[1])
    assert torch.equal(*rows)


@pytest.mark.parametrize("positions", [None, torch.zeros(2, 5)])
def test_positions_are_needed(positions: Tensor | None) -> None:
    model = LlamaForCausalLM()
    board_on(model, sums=cubes())
    with pytest.raises(GuardReadingError, match="a position for every token"):
        model(input_ids=IDS, positions=positions)
