"""Projections on vLLM's board: blocks hand the residual stream on in two tensors, and what is changed is their sum."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from guards.contract.guard import OverRanks
from guards.methods.probe_project.guard import ProjectionGuard
from guards.model.shard import WHOLE, Shard
from guards.model.sites import Site
from tests.guards.inside.vllm.imitation import LlamaForCausalLM, PPMissingLayer, on_ranks, sliced
from tests.guards.inside.vllm.test_board import IDS, SEQUENCES, board_on, parts, run
from tests.guards.samples import LAST_ALONE, projections, spans

GUARD = projections(0, 2)


def projected(h_TD: Tensor, guard: ProjectionGuard, layer: int) -> Tensor:
    """The formula, where a layer has one."""
    for of in guard.boundaries:
        if of.layer == layer:
            step_T = guard.beta * (h_TD.float() @ of.w_D[:, None] + of.b)[:, 0].clamp_min(0)
            moved_TD = (h_TD.float() - step_T[:, None] * of.w_D).to(h_TD.dtype)
            h_TD = torch.where(step_T[:, None] > 0, moved_TD, h_TD)
    return h_TD


@torch.no_grad()
def by_hand(model: LlamaForCausalLM, guard: ProjectionGuard) -> Tensor:
    """What the model gives in the end, of a residual stream in one tensor."""
    x: Tensor = model.model.embed_tokens(IDS)
    block: Any
    for layer, block in enumerate(model.model.layers):
        x = projected(block.self_attn(x) + block.mlp(x) + x, guard, layer)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", [(0,), (1,), (2,), (0, 1, 2)])
def test_the_model_goes_on_with_the_changed_sum(layers: tuple[int, ...], dtype: torch.dtype) -> None:
    model, guard = LlamaForCausalLM().to(dtype), projections(*layers)
    wanted, plain = by_hand(model, guard), run(model)
    hidden, _ = board_on(model, WHOLE, dtype, project=guard).split(run(model))
    torch.testing.assert_close(hidden, wanted)
    assert not torch.allclose(hidden, plain, atol=1e-2)  # positive control


def test_where_it_does_not_act_both_tensors_are_as_they_were() -> None:
    """In bfloat16: their sum, rounded and handed on as one, would be another stream."""
    model, given = LlamaForCausalLM().bfloat16(), list[tuple[Tensor, Tensor]]()
    block: Any = model.model.layers[1]

    def keep(_: object, __: object, output: tuple[Tensor, Tensor]) -> None:
        given.append(output)

    handle = block.register_forward_hook(keep)
    run(model)
    handle.remove()
    board = board_on(model, WHOLE, torch.bfloat16, project=projections(1))
    block.register_forward_hook(keep)
    _, rows_TX = board.split(run(model))
    (hidden, residual), (changed_hidden, changed_residual) = given
    acted_T = parts(board, rows_TX, "project")[:, 0] > 0
    assert 0 < int(acted_T.sum()) < len(acted_T)
    assert torch.equal(changed_hidden[~acted_T], hidden[~acted_T])
    assert torch.equal(changed_residual[~acted_T], residual[~acted_T])
    wanted_TD = projected(hidden + residual, projections(1), 1)
    assert torch.equal((changed_hidden + changed_residual)[acted_T], wanted_TD[acted_T])
    assert not bool(changed_residual[acted_T].any())


def test_every_rank_changes_all_of_it_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The residual stream is whole on each, so that nothing is summed."""
    whole = LlamaForCausalLM()
    wanted = by_hand(whole, GUARD)

    def of_rank(rank: int) -> tuple[Tensor, Tensor]:
        part = sliced(whole, rank, 2)
        board = board_on(part, Shard(rank, 2), project=GUARD)
        assert {each.column.over_ranks for each in board.columns.all} == {OverRanks.SAME}
        hidden, rows_TX = board.split(run(part))
        return hidden, parts(board, rows_TX, "project")

    (mine, said), (other, also_said) = on_ranks(monkeypatch, [partial(of_rank, rank) for rank in range(2)])
    torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(mine, other)
    assert torch.equal(said, also_said)
    one = copy.deepcopy(whole)
    board = board_on(one, project=GUARD)
    torch.testing.assert_close(said, parts(board, board.split(run(one))[1], "project"), rtol=1e-4, atol=1e-5)


def test_requests_of_one_pass_have_the_model_that_each_has_alone() -> None:
    model = LlamaForCausalLM()
    plain, everywhere = run(model), copy.deepcopy(model)
    changed, _ = board_on(everywhere, project=GUARD).split(run(everywhere))
    off: list[tuple[int, frozenset[str]]] = [(3, frozenset({"project"})), (1, frozenset()), (1, frozenset({"project"}))]
    board = board_on(model, WHOLE, torch.float32, SEQUENCES, off, project=GUARD)
    is_off_T = torch.tensor([True] * 3 + [False, True])
    hidden, rows_TX = board.split(run(model))
    assert torch.equal(hidden[is_off_T], plain[is_off_T])
    torch.testing.assert_close(hidden, torch.where(is_off_T[:, None], plain, changed))
    assert not bool(parts(board, rows_TX, "project")[is_off_T].any())
    off.clear()
    hidden, _ = board.split(run(model))
    torch.testing.assert_close(hidden, changed, msg="what was said is of one pass alone")
    assert not torch.allclose(plain[is_off_T], changed[is_off_T], atol=1e-3)  # positive control


def test_a_later_stage_goes_on_with_what_an_earlier_one_changed() -> None:
    """The change of a stage's last block is in what it hands on."""
    whole = LlamaForCausalLM()
    wanted = by_hand(whole, GUARD)
    first, last = copy.deepcopy(whole), copy.deepcopy(whole)
    first.last = False
    first.model.layers[1] = first.model.layers[2] = PPMissingLayer()
    last.model.layers[0] = PPMissingLayer()
    _, board = board_on(first, project=GUARD), board_on(last, project=GUARD)
    hidden, rows_TX = board.split(run(last, intermediate_tensors=run(first)))
    torch.testing.assert_close(hidden, wanted)
    one = copy.deepcopy(whole)
    unsplit = board_on(one, project=GUARD)
    wanted_TX = unsplit.split(run(one))[1]
    torch.testing.assert_close(parts(board, rows_TX, "project"), parts(unsplit, wanted_TX, "project"))


def test_a_detector_at_the_same_place_reads_what_is_left() -> None:
    model, guard, detector = LlamaForCausalLM(), projections(2), spans(2, judgements=LAST_ALONE, site=Site.RESIDUAL)
    wanted, plain = by_hand(model, guard), run(model)
    board = board_on(model, sums=detector, project=guard)
    _, rows_TX = board.split(run(model))
    (term,) = detector.terms
    read_T = parts(board, rows_TX, "sums")[:, 0]
    torch.testing.assert_close(read_T, wanted @ term.weight_F - term.offset, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(read_T, plain @ term.weight_F - term.offset, atol=1e-2)  # positive control


def test_the_traced_graph_does_the_same() -> None:
    """As vLLM has it: hooks and all in one graph, without a break, and masks and numbers read from buffers."""
    model = LlamaForCausalLM()
    board = board_on(model, WHOLE, torch.float32, SEQUENCES, project=GUARD)
    wanted, _ = board.split(run(model))
    model.model = torch.compile(model.model, backend="eager", fullgraph=True)  # type: ignore[assignment]
    hidden, _ = board.split(run(model))
    assert torch.equal(hidden, wanted)
