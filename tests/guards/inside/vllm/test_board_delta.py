"""Changes of outputs on vLLM's board: before ranks are summed, and for some requests of a pass alone."""

import copy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from guards.contract.guard import Guard
from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardMode, Scope
from guards.errors import GuardReadingError
from guards.inside.vllm.events import POLICY
from guards.inside.vllm.switches import off_finder
from guards.methods.lunar.guard import LunarGuard
from guards.model.shard import WHOLE, Shard
from tests.guards.inside.vllm.imitation import LlamaForCausalLM, on_ranks, sliced
from tests.guards.inside.vllm.test_board import IDS, SEQUENCES, board_on, down, parts, run
from tests.guards.samples import factors, neuron_adjust

CHANGE = LunarGuard({0: factors(3, seed=1), 2: factors(2, seed=2)}, "unanswerable", 2.0, 1e-3)
"""Served as any method's."""
TOKENS = len(IDS)


def folded(model: LlamaForCausalLM) -> Tensor:
    """Hidden states of the model with the change in its weights."""
    changed = copy.deepcopy(model)
    for layer, each in CHANGE.deltas.items():
        down(changed, layer).weight.data += each.b_DR @ each.a_RF
    hidden: Tensor = run(changed)
    return hidden


def test_a_branch_equals_the_folded_weights() -> None:
    model = LlamaForCausalLM()
    plain, wanted = run(model), folded(model)
    hidden, _ = board_on(model, change=CHANGE).split(run(model))
    torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(hidden, plain, atol=1e-3)  # positive control


def test_two_ranks_add_what_one_adds_and_read_it_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LlamaForCausalLM()

    def of_rank(rank: int) -> tuple[Tensor, Tensor]:
        part = sliced(whole, rank, 2)
        board = board_on(part, Shard(rank, 2), change=CHANGE)
        assert not down(part, 0).reduce_results, "one reduction, behind the branch"
        assert down(part, 1).reduce_results, "no branch, nothing changes"
        return board.split(run(part))

    found = on_ranks(monkeypatch, [partial(of_rank, rank) for rank in range(2)])
    wanted = folded(whole)
    board = board_on(whole, change=CHANGE)
    _, rows_TX = board.split(run(whole))
    for hidden, rows in found:
        torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rows, rows_TX, rtol=1e-4, atol=1e-5)
    assert bool((parts(board, rows_TX, "change") > 0).all())


@pytest.mark.parametrize("guard", [CHANGE, neuron_adjust()], ids=["delta", "neuron-adjust"])
def test_requests_of_one_pass_have_the_model_that_each_has_alone(guard: Guard) -> None:
    model = LlamaForCausalLM()
    plain, everywhere = run(model), copy.deepcopy(model)
    changed, _ = board_on(everywhere, change=guard).split(run(everywhere))
    off: list[tuple[int, frozenset[str]]] = [(3, frozenset({"change"})), (1, frozenset()), (1, frozenset({"change"}))]
    board = board_on(model, WHOLE, torch.float32, SEQUENCES, off, change=guard)
    is_off_T = torch.tensor([True] * 3 + [False, True])
    hidden, rows_TX = board.split(run(model))
    torch.testing.assert_close(hidden, torch.where(is_off_T[:, None], plain, changed))
    assert torch.equal(parts(board, rows_TX, "change")[:, 0] == 0, is_off_T)
    off.clear()
    hidden, _ = board.split(run(model))
    torch.testing.assert_close(hidden, changed, msg="what was said is of one pass alone")
    assert not torch.allclose(plain, changed, atol=1e-3)  # positive control


def test_more_tokens_than_the_pass_has_are_an_error() -> None:
    model = LlamaForCausalLM()
    board_on(model, WHOLE, torch.float32, SEQUENCES, [(TOKENS + 1, {"change"})], change=CHANGE)
    with pytest.raises(GuardReadingError, match=rf"got {TOKENS} tokens, and {TOKENS + 1} to switch"):
        run(model)


def test_the_batch_of_the_model_runner_says_whose_tokens_are_whose() -> None:
    off = Policy({"change": Rule(GuardMode.OFF), "sums": Rule(GuardMode.SHADOW, Scope.BOTH, (0.5,))})
    requests = {
        name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra))
        for name, extra in (("a", {POLICY: off.text}), ("b", None), ("c", {POLICY: Policy().text}), ("gone", {}))
    }
    runner = SimpleNamespace(
        input_batch=SimpleNamespace(req_ids=["b", "a", "c"]),
        query_start_loc=SimpleNamespace(np=np.array([0, 1, 5, 6, 6, 6])),
        requests=requests,
    )
    find = off_finder(runner)
    assert find() == [(1, frozenset()), (4, frozenset({"change"})), (1, frozenset())]
    runner.input_batch.req_ids = []
    assert find() == []
