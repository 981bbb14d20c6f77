"""Guards over spans on a board: states where the pass's sequences lie, the same however the model is split."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from guards.contract.guard import Guard
from guards.contract.slots import Sequences
from guards.core.verdict import Reading
from guards.inside.vllm import board as vllm_board
from guards.inside.vllm.board import Board
from guards.methods.neuron_adjust.guard import Draw, NeuronAdjustGuard
from guards.methods.spans.guard import SpanGuard
from guards.model.shard import WHOLE, Shard
from guards.model.sites import Place, Site
from tests.guards.contract.running import sequences
from tests.guards.inside.vllm.imitation import LlamaForCausalLM, PPMissingLayer, Stage, on_ranks, sliced
from tests.guards.inside.vllm.test_board import (
    IDS,
    POSITIONS,
    ROWS,
    board_on,
    codes,
    keys,
    parts,
    probe,
    run,
)
from tests.guards.samples import MEAN_ALONE, cube, cubes, layer_statistics, neuron_adjust, spans

FOUND = sequences([0, 3, 4, 5], [32, 33, 34, 64, 7], [-1, -1, 34])
"""Three tokens and one of new sequences, and one that goes on from slot 34, which another pass wrote."""
EVERY = torch.arange(5)


def over_mean(*layers: int) -> SpanGuard:
    """Of one part."""
    return spans(*layers, judgements=MEAN_ALONE)


def mean_of(*values: Tensor) -> Tensor:
    """What it reads of the values of all tokens behind the first."""
    return 1 - sum((1 - value for value in values), torch.tensor(0.0)) / (len(values) + 1)


def values(model: LlamaForCausalLM, guard: SpanGuard) -> Tensor:
    """Every token's own value, float32 [T], from key vectors read without a board."""
    return torch.stack([keys(model, term.layer).float() @ term.weight_F - term.offset for term in guard.terms]).sum(0)


def means(model: LlamaForCausalLM, board: Board) -> Tensor:
    """The scores of the guard "mean" at every token of a pass."""
    return parts(board, board.split(run(model))[1], "mean")[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_means_are_over_each_sequences_tokens_so_far(dtype: torch.dtype) -> None:
    model, guard = LlamaForCausalLM().to(dtype), over_mean(0, 2)
    value_T = values(model, guard)
    board = board_on(model, WHOLE, dtype, FOUND, mean=guard, sums=cubes(cube(2)))
    first = means(model, board)
    wanted = [mean_of(*value_T[1:count]) for count in (1, 2, 3, 1)]
    torch.testing.assert_close(first[:4], torch.stack(wanted), rtol=1e-4, atol=1e-5)
    assert bool(first[4].isnan()), "nobody had written slot 34 when this pass began"
    second = means(model, board)
    torch.testing.assert_close(second[4], mean_of(value_T[1], value_T[2], value_T[4]), rtol=1e-4, atol=1e-5)
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
    board = board_on(model, WHOLE, torch.float32, found, mean=over_mean(0, 2), sums=cubes(*map(cube, (0, 2))))
    _, rows_RX = board.split(run(model))
    assert torch.isfinite(parts(board, rows_RX, "mean"))[:, 0].nonzero().flatten().tolist() == finite
    assert bool(torch.isfinite(parts(board, rows_RX, "sums")).all()), "a cube needs no sequence"
    invalid = (codes(board, rows_RX)[:, 0] == int(Reading.INVALID)).nonzero().flatten().tolist()
    assert invalid == [row for row in EVERY.tolist() if row not in finite]


def test_a_layer_that_was_not_heard_of_is_no_pass() -> None:
    model = LlamaForCausalLM()
    board = board_on(model, mean=over_mean(0, 2))
    assert bool(torch.isfinite(means(model, board)[:4]).all())
    model.model.layers[2].mlp.down_proj._forward_pre_hooks.clear()  # type: ignore[union-attr]
    assert bool(torch.isnan(means(model, board)).all())


def test_two_ranks_say_what_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every layer, and though what a token says is no number of its own slice: ranks are joined before the least."""
    whole = LlamaForCausalLM()
    guards: dict[str, Guard] = {"mean": over_mean(0, 2), "sums": cubes(cube(0), cube(2)), "probe": probe()}

    def of_rank(rank: int) -> tuple[list[Tensor], Tensor]:
        part = sliced(whole, rank, 2)
        board = board_on(part, Shard(rank, 2), torch.float32, FOUND, **guards)
        rows = [board.split(run(part))[1] for _ in range(2)]
        at_key = board.columns.at(Place(0, Site.KEY), guards)
        (own_TC,) = [cells_TC for columns, cells_TC in board._sites if columns.tolist() == at_key]
        return rows, own_TC[: len(IDS)]

    ranks, own = zip(*on_ranks(monkeypatch, [partial(of_rank, rank) for rank in range(2)]), strict=True)
    assert bool(((own[0] - own[1]).abs().amax(dim=0) > 0.01).all()), "positive control: the slices differ"
    one = board_on(whole, WHOLE, torch.float32, FOUND, **guards)
    for time, of_pass in enumerate(zip(*ranks, strict=True)):
        wanted = one.split(run(whole))[1]
        assert bool(torch.isfinite(wanted[:4]).all())
        for joined in of_pass:
            torch.testing.assert_close(joined, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)
        assert bool(torch.isfinite(parts(one, wanted, "mean"))[4]) is (time == 1)


def stages(whole: LlamaForCausalLM) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A stage with layer 0 and one with layers 1 and 2."""
    first, second = copy.deepcopy(whole), copy.deepcopy(whole)
    first.last = False
    first.model.layers[1] = first.model.layers[2] = PPMissingLayer()
    second.model.layers[0] = PPMissingLayer()
    return first, second


STAGED: dict[str, Guard] = {
    "mean": over_mean(0, 1),
    "sums": cubes(cube(0), cube(1)),
    "shift": NeuronAdjustGuard({0: layer_statistics(1, 5, 20)}, 3 / 72, Draw.CERTAIN, 7),
    "probe": probe(0, 2),
}


def through_two_stages(
    whole: LlamaForCausalLM, before: int, patch: pytest.MonkeyPatch, on_its_way: Callable[[int, Stage], None]
) -> list[Tensor]:
    """The first sampled row as two ranks have it, behind a stage of `before` ranks that has layer 0."""

    def of_rank(first: LlamaForCausalLM, shard: Shard) -> Stage:
        board_on(first, shard, **STAGED)
        sent: Stage = run(first)
        return sent

    def of_second(rank: int, sent: Stage) -> Tensor:
        part = sliced(whole, rank, 2)
        part.model.layers[0] = PPMissingLayer()
        board = board_on(part, Shard(rank, 2), **STAGED)
        mine = Stage({key: tensor.clone() for key, tensor in sent.tensors.items()})
        on_its_way(rank, mine)
        return board.split(run(part, intermediate_tensors=mine)[ROWS[:1]])[1]

    parts_of_first = [stages(whole if before == 1 else sliced(whole, rank, before))[0] for rank in range(before)]
    sends = on_ranks(patch, [partial(of_rank, part, Shard(i, before)) for i, part in enumerate(parts_of_first)])
    return on_ranks(patch, [partial(of_second, rank, sends[rank % before]) for rank in range(2)])


def test_two_stages_say_what_one_says() -> None:
    whole = LlamaForCausalLM()
    first, second = stages(whole)
    guards: dict[str, Guard] = {"mean": over_mean(0, 2), "sums": cubes(cube(0), cube(2)), "shift": neuron_adjust()}
    guards["probe"] = probe(0, 2)
    one, begin, end = (board_on(model, WHOLE, torch.float32, FOUND, **guards) for model in (whole, first, second))
    for time in range(2):
        wanted = one.split(run(whole))[1]
        sent: Stage = run(first)
        columns = begin.columns
        of_second = [i for i in columns.accumulated if columns.all[i].column.place.layer == 2]
        assert bool(sent.tensors[vllm_board.TENSOR_KEY][:, of_second].isnan().all()), "these are not known yet"
        rows_RX = end.split(run(second, intermediate_tensors=sent))[1]
        torch.testing.assert_close(rows_RX, wanted, equal_nan=True)
        assert torch.isfinite(rows_RX).all(dim=1).tolist() == [True] * 4 + [time == 1]


@pytest.mark.parametrize("before", [1, 2])
def test_what_a_stage_sends_to_two_ranks_is_counted_once(before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stage sends is of all its ranks, were they one or two; each of the next one's gets all of it."""
    whole = LlamaForCausalLM()
    found = through_two_stages(whole, before, monkeypatch, lambda *_: None)
    one = board_on(whole, **STAGED)
    wanted = one.split(run(whole)[ROWS[:1]])[1]
    assert bool(torch.isfinite(wanted).all())
    for rows_RX in found:
        torch.testing.assert_close(rows_RX, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("to", [(0, 1), (0,), (1,)])
def test_a_nan_that_a_stage_sends_reaches_the_end(
    before: int, column: int, to: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever rank it is that gets it."""
    board = board_on(LlamaForCausalLM(), **STAGED)
    columns = board.columns
    at_first = [i for i, each in enumerate(columns.all) if each.column.place.layer == 0]
    assert len(at_first) == 4, "the cube's, the mean's, the count and the probe's"

    def spoil(rank: int, brought: Stage) -> None:
        if rank in to:
            brought.tensors[vllm_board.TENSOR_KEY][:, at_first[column]] = torch.nan

    for rows_RX in through_two_stages(LlamaForCausalLM(), before, monkeypatch, spoil):
        invalid = (codes(board, rows_RX)[0] == int(Reading.INVALID)).tolist()
        assert invalid == [name == columns.all[at_first[column]].guard for name in columns.guards]


def test_positions_are_those_of_the_pass() -> None:
    """Positive control for the means above: the first token of a text counts for nothing, and another does."""
    model, guard = LlamaForCausalLM(), over_mean(0, 2)
    board, value_T = board_on(model, WHOLE, torch.float32, FOUND, mean=guard), values(model, guard)
    assert float(means(model, board)[0]) == 1
    with torch.no_grad():
        moved = model(input_ids=IDS, positions=POSITIONS + 1)
    torch.testing.assert_close(parts(board, board.split(moved)[1], "mean")[0, 0], mean_of(value_T[0]))
