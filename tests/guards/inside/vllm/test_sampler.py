"""The draw, and what replaces it. No vLLM needed: its sampler and batch are imitated."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guards.contract.columns import Cells
from guards.contract.guard import Bound
from guards.core.verdict import Scope
from guards.errors import GuardReadingError
from guards.inside.vllm.events import SHADOW, RowReport, load_moved, load_report
from guards.inside.vllm.sampler import WithholdingSampler
from guards.methods.registry import METHODS
from guards.model.shard import WHOLE
from tests.guards.samples import cube, cubes, neuron_adjust

SENTINEL, DRAWN = 2, 40
IN, OUT, BROKEN = 1.0, 9.0, float("nan")


class Inner(nn.Module):
    """Draws one token for every row, whatever the logits."""

    logprobs_mode = "raw_logprobs"

    def forward(self, logits: Tensor, sampling_metadata: Any) -> Any:
        rows = logits.shape[0]
        logprobs = SimpleNamespace(
            logprobs=torch.full((rows, 3), -0.5),
            logprob_token_ids=torch.full((rows, 3), DRAWN),
            selected_token_ranks=torch.ones(rows),
        )
        tokens = torch.full((rows, 1), DRAWN, dtype=torch.int32)
        return SimpleNamespace(sampled_token_ids=tokens, logprobs_tensors=logprobs if sampling_metadata else None)


def runner(*generated: int, shadow: tuple[tuple[str, ...], ...] = (), discard: tuple[int, ...] = ()) -> Any:
    """A model runner with one request per number, that many tokens into its answer."""
    count = len(generated)
    names = [f"r{index}" for index in range(count)]
    watched = shadow or ((),) * count
    mask = np.zeros(8, dtype=bool)
    mask[list(discard)] = True
    return SimpleNamespace(
        input_batch=SimpleNamespace(
            num_reqs=count,
            req_ids=names,
            num_tokens_no_spec=np.array([10 + n for n in generated] + [0]),
            num_prompt_tokens=np.array([10] * count + [0]),
        ),
        requests={
            name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args={SHADOW: list(each)} if each else None))
            for name, each in zip(names, watched, strict=True)
        },
        discard_request_mask=SimpleNamespace(np=mask),
    )


def sampler(of: Any, scope: Scope = Scope.BOTH) -> WithholdingSampler:
    """Two detectors and an intervention: cells are [a, b, moved at 2] after [moved at 0]."""
    guards: dict[str, Bound] = {
        "a": METHODS["ksd"].bind(cubes(cube(0)), torch.device("cpu"), WHOLE),
        "b": METHODS["ksd"].bind(cubes(cube(0)), torch.device("cpu"), WHOLE),
        "shift": METHODS["neuron-adjust"].bind(neuron_adjust(), torch.device("cpu"), WHOLE),
    }
    return WithholdingSampler(Inner(), of, Cells(guards), {"a": scope, "b": scope, "shift": Scope.BOTH}, SENTINEL)


def row(a: float = OUT, b: float = OUT, moved: float = 0.0, later: float = 0.0) -> list[float]:
    return [a, b, moved, later]


def draw(under_test: WithholdingSampler, *rows: list[float], logprobs: bool = False) -> Any:
    under_test.put(torch.tensor(rows))
    return under_test(torch.zeros(len(rows), 64), sampling_metadata=logprobs)


def test_only_rows_that_a_guard_withholds_are_replaced() -> None:
    rows = [row(), row(a=IN), row(b=IN), row(moved=3.0), row(a=BROKEN), row(later=BROKEN)]
    output = draw(sampler(runner(0, 1, 2, 3, 4, 5)), *rows, logprobs=True)
    assert output.sampled_token_ids.flatten().tolist() == [DRAWN, SENTINEL, SENTINEL, DRAWN, SENTINEL, SENTINEL]
    assert output.sampled_token_ids.dtype is torch.int32
    shown = output.logprobs_tensors
    for index, withheld in enumerate([False, True, True, False, True, True]):
        assert bool((shown.logprob_token_ids[index] == SENTINEL).all()) is withheld
        assert bool(torch.isinf(shown.logprobs[index]).all()) is withheld


def test_a_request_that_is_watched_draws_unless_a_reading_is_broken() -> None:
    watched = (("a",), ("a",), ("a", "b"), ("a", "b", "shift"))
    rows = [row(a=IN), row(b=IN), row(a=IN, b=IN), row(a=BROKEN)]
    output = draw(sampler(runner(0, 0, 0, 0, shadow=watched)), *rows)
    assert output.sampled_token_ids.flatten().tolist() == [DRAWN, SENTINEL, DRAWN, SENTINEL]


@pytest.mark.parametrize(
    ("scope", "withheld"),
    [(Scope.PROMPT, [True, False]), (Scope.GENERATION, [False, True]), (Scope.BOTH, [True, True])],
)
def test_scope(scope: Scope, withheld: list[bool]) -> None:
    output = draw(sampler(runner(0, 1), scope), row(a=IN), row(a=IN))
    assert [token == SENTINEL for token in output.sampled_token_ids.flatten().tolist()] == withheld


def test_what_is_told() -> None:
    under_test = sampler(runner(0, 3, 3, 3, 0, 4, discard=(4,)))
    draw(under_test, row(), row(), row(a=IN), row(moved=2.0), row(a=IN), row(b=BROKEN))
    judged = under_test.take()
    assert judged is not None
    told = judged.told()
    assert told.judged == {f"r{index}" for index in range(6)}
    events = told.events
    assert {name: (event.generated, event.withheld) for name, event in events.items()} == {
        "r0": (0, False),  # every prompt is told
        "r2": (3, True),
        "r5": (4, True),
    }
    assert events["r2"].cells == (IN, OUT, 0.0, 0.0)
    assert told.moved == {"r3": 2}
    assert load_moved(told.params("r3")) == 2
    assert told.params("r1") is None
    assert under_test.take() is None


@pytest.mark.parametrize("cells", [None, torch.zeros(1, 4), torch.zeros(3, 4)])
def test_logits_without_their_cells_are_an_error(cells: Tensor | None) -> None:
    under_test = sampler(runner(0, 0))
    if cells is not None:
        under_test.put(cells)
    with pytest.raises(GuardReadingError, match="around the guards"):
        under_test(torch.zeros(2, 64), sampling_metadata=False)


def test_cells_are_used_once() -> None:
    under_test = sampler(runner(0))
    draw(under_test, row())
    with pytest.raises(GuardReadingError):
        under_test(torch.zeros(1, 64), sampling_metadata=False)


def test_made_up_logits_of_the_warm_up_pass() -> None:
    output = sampler(runner())(torch.zeros(5, 64), sampling_metadata=False)
    assert output.sampled_token_ids.flatten().tolist() == [DRAWN] * 5


def test_what_the_inner_sampler_has_is_there() -> None:
    assert sampler(runner()).logprobs_mode == "raw_logprobs"
    with pytest.raises(AttributeError):
        _ = sampler(runner()).nonsense


def test_events_survive_the_journey() -> None:
    event = RowReport(3, (1.5, float("inf")), True)
    assert load_report({**event.dump(), "other": 1}) == event
    assert load_report(None) is None
    assert load_report({"other": 1}) is None
    assert load_moved(event.dump()) == 0
    assert load_moved(None) == 0
