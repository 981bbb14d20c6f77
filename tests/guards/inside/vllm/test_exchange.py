"""Another guard's numbers in the place of one's on a board, whose graph stays as it was traced."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from guards.contract.columns import Bookkeeping
from guards.contract.guard import Guard
from guards.contract.spans import MessageMean
from guards.errors import AttachError
from guards.inside.vllm.board import Board
from guards.methods.neuron_adjust.guard import Draw, NeuronAdjustGuard
from guards.methods.spans.guard import Judgement, SpanGuard
from guards.model.shard import WHOLE
from tests.guards.attached import entry
from tests.guards.inside.vllm.imitation import LlamaForCausalLM
from tests.guards.inside.vllm.test_board import board_on, run
from tests.guards.inside.vllm.test_board_spans import FOUND, means, over_mean
from tests.guards.samples import cube, cubes, layer_statistics, neuron_adjust, projections, pruned, spans

OLD = over_mean(0, 2)
NEW = replace(OLD, terms=tuple(replace(term, weight_F=-term.weight_F, offset=term.offset + 0.5) for term in OLD.terms))
MODEL = LlamaForCausalLM()
GOES_ON = 4
"""The token whose sequence a pass before began."""


def board_of(model: LlamaForCausalLM, guard: SpanGuard) -> Board:
    own = copy.deepcopy(guard)  # whose tensors the board may run with, and exchange
    return board_on(model, WHOLE, torch.float32, FOUND, mean=own)


def exchange(board: Board, name: str, guard: Guard) -> None:
    method, _ = entry(guard)
    board.offer(name, method, guard)
    board.exchange()


def fresh(guard: SpanGuard) -> list[Tensor]:
    """What a board that never had another guard reads in its first and in its second pass."""
    model = copy.deepcopy(MODEL)
    board = board_of(model, guard)
    return [means(model, board) for _ in range(2)]


def test_what_follows_reads_the_new_guard_and_nothing_that_the_old_one_kept() -> None:
    model = copy.deepcopy(MODEL)
    board = board_of(model, OLD)
    first_old, _ = fresh(OLD)
    torch.testing.assert_close(means(model, board), first_old, equal_nan=True)
    exchange(board, "mean", NEW)
    first_new, second_new = fresh(NEW)
    assert bool(first_new[GOES_ON].isnan()), "a slot that nobody wrote"
    assert float((first_new - first_old)[:GOES_ON].abs().max()) > 0.01, "the control: the guards differ"
    torch.testing.assert_close(means(model, board), first_new, equal_nan=True)
    torch.testing.assert_close(means(model, board), second_new)
    board.exchange()
    torch.testing.assert_close(means(model, board), first_old, equal_nan=True)
    assert board.bound["mean"].taus == board_of(copy.deepcopy(MODEL), OLD).bound["mean"].taus


def test_with_the_state_kept_the_score_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: a number, and neither guard's."""
    monkeypatch.setattr(Bookkeeping, "forget", lambda _: None)
    model = copy.deepcopy(MODEL)
    board = board_of(model, OLD)
    means(model, board)
    exchange(board, "mean", NEW)
    mixed = means(model, board)[GOES_ON]
    for guard in (OLD, NEW):
        assert bool((mixed - fresh(guard)[1][GOES_ON]).abs() > 0.01)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (cubes(cube(0), cube(2, seed=1)), cubes(cube(0, seed=2), cube(2, seed=3, tau=9.0))),
        (
            NeuronAdjustGuard({0: layer_statistics(1, 5)}, 0.1, Draw.CERTAIN, 7),
            NeuronAdjustGuard({0: layer_statistics(2, 9)}, 0.1, Draw.CERTAIN, 8),
        ),
        (projections(0, 2), projections(0, 2, beta=0.5)),
    ],
    ids=["cubes", "neuron adjust", "projections"],
)
def test_a_board_is_as_one_that_was_made_of_the_new_guard(old: Guard, new: Guard) -> None:
    def rows(board: Board, model: LlamaForCausalLM) -> Tensor:
        output: Tensor = run(model)
        return torch.cat(board.split(output), dim=-1)

    model, other = copy.deepcopy(MODEL), copy.deepcopy(MODEL)
    board, made = board_on(model, g=copy.deepcopy(old)), board_on(other, g=copy.deepcopy(new))
    before = rows(board, model)
    wanted = rows(made, other)
    assert not torch.equal(before, wanted), "the control"
    exchange(board, "g", new)
    torch.testing.assert_close(rows(board, model), wanted)
    assert board.bound["g"].taus == made.bound["g"].taus
    board.exchange()
    torch.testing.assert_close(rows(board, model), before)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (cubes(cube(0)), cubes(cube(2)), "its parts are"),
        (cubes(cube(0)), cubes(cube(0), cube(0, seed=1)), "its parts are"),
        (cubes(cube(0)), spans(0, 2), "its parts are"),
        (OLD, replace(OLD, judgements=(Judgement(MessageMean(2.0, written=False), 0.75),)), "its parts are"),
        (
            NeuronAdjustGuard({0: layer_statistics(1, 5)}, 0.1, Draw.CERTAIN, 7),
            NeuronAdjustGuard({0: layer_statistics(1, 5)}, 0.1, Draw.RANDOM, 7),
            "_draw",
        ),
        (
            NeuronAdjustGuard({0: layer_statistics(1, 5)}, 0.1, Draw.CERTAIN, 7),
            NeuronAdjustGuard({0: layer_statistics(1, 5, 9)}, 0.1, Draw.CERTAIN, 7),
            "its tensor",
        ),
        (neuron_adjust(), pruned(), "its parts are|its columns are|it acts by"),
    ],
    ids=[
        "another layer",
        "another cube",
        "another method",
        "counted otherwise",
        "drawn otherwise",
        "more neurons",
        "shift",
    ],
)
def test_what_the_traced_graph_cannot_take_is_refused_and_changes_nothing(old: Guard, new: Guard, why: str) -> None:
    model = LlamaForCausalLM()
    board = board_on(model, g=old)
    before = run(model)
    method, _ = entry(new)
    with pytest.raises(AttachError, match=why):
        board.offer("g", method, new)
    torch.testing.assert_close(run(model), before, equal_nan=True)
    with pytest.raises(AssertionError, match="not offered"):
        board.exchange()
