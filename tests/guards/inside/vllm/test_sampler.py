"""The draw, and what replaces it. No vLLM needed: its sampler and batch are imitated."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guards.contract.columns import Columns
from guards.contract.guard import Bound, default_rules
from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardMode, Scope
from guards.errors import GuardReadingError, PolicyError
from guards.inside.vllm.events import POLICY, Acted, RowReport, load_acted, load_report
from guards.inside.vllm.sampler import WithholdingSampler
from guards.methods.registry import CUBE, NEURON_ADJUST
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


def runner(*generated: int, brought: tuple[str | None, ...] = (), discard: tuple[int, ...] = ()) -> Any:
    """A model runner with one request per number, that many tokens into its answer.

    Each brought a policy's text, or none.
    """
    count = len(generated)
    names = [f"r{index}" for index in range(count)]
    texts = brought or (None,) * count
    mask = np.zeros(16, dtype=bool)
    mask[list(discard)] = True
    return SimpleNamespace(
        input_batch=SimpleNamespace(
            num_reqs=count,
            req_ids=names,
            num_tokens_no_spec=np.array([10 + n for n in generated] + [0]),
            num_prompt_tokens=np.array([10] * count + [0]),
        ),
        requests={
            name: SimpleNamespace(
                sampling_params=SimpleNamespace(extra_args=None if text is None else {POLICY: text, "other": 1})
            )
            for name, text in zip(names, texts, strict=True)
        },
        discard_request_mask=SimpleNamespace(np=mask),
    )


def sampler(of: Any, scope: Scope = Scope.BOTH) -> WithholdingSampler:
    """Two detectors and an intervention: a row is [a, b, moved at 0, moved at 2]."""
    guards: dict[str, Bound] = {
        "a": CUBE.bind(cubes(cube(0)), torch.device("cpu"), WHOLE),
        "b": CUBE.bind(cubes(cube(0)), torch.device("cpu"), WHOLE),
        "shift": NEURON_ADJUST.bind(neuron_adjust(), torch.device("cpu"), WHOLE),
    }
    defaults = default_rules(guards, {"a": scope, "b": scope, "shift": Scope.BOTH})
    return WithholdingSampler(Inner(), of, Columns(guards), defaults, SENTINEL)


def watched(*names: str) -> str:
    """A policy under which these guards only count."""
    taus = {"a": (3.0,), "b": (3.0,), "shift": ()}
    return Policy({name: Rule(GuardMode.SHADOW, Scope.BOTH, taus[name]) for name in names}).text


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
    brought = (watched("a"), watched("a"), watched("a", "b"), watched("a", "b", "shift"))
    rows = [row(a=IN), row(b=IN), row(a=IN, b=IN), row(a=BROKEN)]
    output = draw(sampler(runner(0, 0, 0, 0, brought=brought)), *rows)
    assert output.sampled_token_ids.flatten().tolist() == [DRAWN, SENTINEL, DRAWN, SENTINEL]


def ruled(tau: float, mode: GuardMode = GuardMode.ENFORCE, scope: Scope = Scope.BOTH) -> str:
    """A policy of guard a alone."""
    return Policy({"a": Rule(mode, scope, (tau,))}).text


def test_every_request_stands_under_the_policy_that_it_brought() -> None:
    """One batch, one score: thresholds, modes and scopes are each row's own; what a policy leaves out is default."""
    brought = (
        *(None, Policy().text, ruled(4.5), ruled(4.0), ruled(3.9), ruled(4.5, GuardMode.SHADOW)),
        *(ruled(4.5, scope=Scope.PROMPT), ruled(4.5, scope=Scope.GENERATION), ruled(4.5)),
        ruled(4.5, GuardMode.OFF),
    )
    under_test = sampler(runner(*(1,) * 10, brought=brought), Scope.BOTH)
    rows = [row(a=4.0)] * 8 + [row(a=9, b=IN), row(a=4.0)]
    withheld = [False, False, True, True, False, False, False, True, True, False]
    for _ in range(2):  # kept rules are those of the same text
        output = draw(under_test, *rows)
        assert [token == SENTINEL for token in output.sampled_token_ids.flatten().tolist()] == withheld
    judged = under_test.take()
    assert judged is not None
    report = judged.report()
    assert set(report.rows) == {"r2", "r3", "r5", "r6", "r7", "r8", "r9"}, "hits are told in every mode and scope"
    assert {name for name, each in report.rows.items() if each.withheld} == {"r2", "r3", "r7", "r8"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no policy",
        '{"a":["enforce","both",[NaN]]}',
        Policy({"z": Rule(taus=(1.0,))}).text,
        Policy({"a": Rule(taus=(1.0, 2.0))}).text,
        Policy({"a": Rule()}).text,
    ],
)
def test_a_policy_that_is_none_is_an_error_and_no_token(text: str) -> None:
    with pytest.raises(PolicyError):
        draw(sampler(runner(0, 0, brought=(None, text))), row(), row())


@pytest.mark.parametrize(
    ("scope", "withheld"),
    [(Scope.PROMPT, [True, False]), (Scope.GENERATION, [False, True]), (Scope.BOTH, [True, True])],
)
def test_scope(scope: Scope, withheld: list[bool]) -> None:
    output = draw(sampler(runner(0, 1), scope), row(a=IN), row(a=IN))
    assert [token == SENTINEL for token in output.sampled_token_ids.flatten().tolist()] == withheld


def test_what_is_told() -> None:
    under_test = sampler(runner(0, 3, 3, 3, 0, 4, discard=(4,)))
    draw(under_test, row(), row(), row(a=IN), row(moved=2.0, later=0.5), row(a=IN), row(b=BROKEN))
    judged = under_test.take()
    assert judged is not None
    report = judged.report()
    assert report.judged == {f"r{index}" for index in range(6)}
    assert {name: (each.generated, each.withheld) for name, each in report.rows.items()} == {
        "r0": (0, False),  # every prompt is told
        "r2": (3, True),
        "r5": (4, True),
    }
    assert report.rows["r2"].entries == (IN, OUT, 0.0, 0.0)
    assert report.acted == {"r3": Acted(3, (2.5,))}
    assert load_acted(report.params("r3")) == Acted(3, (2.5,))
    assert load_report(report.params("r3")) is None
    assert load_report(report.params("r2")) == report.rows["r2"]
    assert report.params("r1") is None
    assert report.params("r4") is None, "its draw is discarded"
    assert under_test.take() is None


@pytest.mark.parametrize("rows", [None, torch.zeros(1, 4), torch.zeros(3, 4)])
def test_logits_without_their_rows_are_an_error(rows: Tensor | None) -> None:
    under_test = sampler(runner(0, 0))
    if rows is not None:
        under_test.put(rows)
    with pytest.raises(GuardReadingError, match="around the guards"):
        under_test(torch.zeros(2, 64), sampling_metadata=False)


def test_rows_are_used_once() -> None:
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


def test_reports_survive_the_journey() -> None:
    told = RowReport(3, (1.5, float("inf")), True)
    assert load_report({**told.dump(), "other": 1}) == told
    assert load_report(None) is None
    assert load_report({"other": 1}) is None
    assert load_acted(told.dump()) is None
    assert load_acted(None) is None
