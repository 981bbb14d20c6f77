"""Judging and drawing, without a model."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guards.contract.columns import Columns
from guards.contract.guard import Column, OverRanks, Part
from guards.core.policy import Policy, Rule
from guards.core.verdict import Reading, Verdict
from guards.inside.transformers.attach import Rows
from guards.model.sites import Place, Site
from server.engines.answer_state import GuardFacts
from server.engines.base import EngineRequest, Sampling
from server.engines.embedded.answer_state import EmbeddedAnswerState
from server.engines.embedded.sampler import JudgingSampler, draw_token

SENTINEL, VOCABULARY = 3, 16
PART, TAU = Part("chat", (0,)), 1.0
FACTS = {"g": GuardFacts("maths", "ksd", (PART,), None)}


class OneCube:
    """A bound guard of one part, which is never run."""

    parts = (PART,)
    columns = (Column(Place(0, Site.KEY), 0, OverRanks.MAX),)
    taus = (TAU,)
    health = None

    def at(self, place: Place, width: int) -> nn.Module:
        raise NotImplementedError


def make(
    codes: list[int], sampling: list[Sampling], **generators: Any
) -> tuple[JudgingSampler, list[EmbeddedAnswerState]]:
    """A sampler with one prepared batch: one row per code and sampling."""
    scores = torch.tensor([[0.5 if code == Reading.INSIDE else 2.0] for code in codes])
    readings = Readings(("g",), torch.tensor(codes).unsqueeze(1), {"g": scores})
    sampler = JudgingSampler(FACTS, lambda rows: readings, lambda token: (str(token), b""), SENTINEL, frozenset({2}))
    rows = [
        EmbeddedAnswerState(EngineRequest(f"r{i}", (1,), each), generator=generators.get(f"r{i}"))
        for i, each in enumerate(sampling)
    ]
    for row in rows:
        sampler.add(row)
    states = [SimpleNamespace(state=SimpleNamespace(request_id=f"r{i}"), has_new_token=True) for i in range(len(rows))]
    sampler.prepare_tensor_args(states, torch.zeros(0))
    return sampler, rows


def drawn(sampler: JudgingSampler, logits: torch.Tensor) -> list[int]:
    return sampler(torch.zeros(len(logits)), logits, torch.zeros(0)).argmax(dim=-1).tolist()


GREEDY = Sampling(max_tokens=1, temperature=0)
ALLOW, HIT = int(Reading.OUTSIDE), int(Reading.INSIDE)


def test_a_hit_draws_the_sentinel_and_nothing_else() -> None:
    sampler, rows = make([ALLOW, HIT], [GREEDY, Sampling(max_tokens=1, temperature=2.0, logprobs=5)])
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 7] = 50.0
    assert drawn(sampler, logits) == [7, SENTINEL]
    assert [row.outcome for row in rows] == [Verdict.ALLOW, Verdict.ABSTAIN]
    assert rows[1].logprobs == []


def test_the_model_never_draws_the_sentinel_itself() -> None:
    sampler, rows = make([ALLOW], [GREEDY])
    logits = torch.zeros(1, VOCABULARY)
    logits[0, SENTINEL], logits[0, 5] = 90.0, 1.0
    assert drawn(sampler, logits) == [5]
    assert rows[0].outcome is Verdict.ALLOW


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_end_their_row_only(value: float) -> None:
    sampler, rows = make([ALLOW, ALLOW], [GREEDY, GREEDY])
    logits = torch.zeros(2, VOCABULARY)
    logits[0, 4], logits[1, 9] = value, 1.0
    assert drawn(sampler, logits) == [SENTINEL, 9]
    assert [row.outcome for row in rows] == [Verdict.ERROR, Verdict.ALLOW]


def test_a_row_that_cannot_be_drawn_ends_itself_only() -> None:
    hot = Sampling(max_tokens=1, temperature=1.0)
    sampler, rows = make([ALLOW, ALLOW], [hot, GREEDY], r0="no generator")
    logits = torch.zeros(2, VOCABULARY)
    logits[1, 9] = 1.0
    assert drawn(sampler, logits) == [SENTINEL, 9]
    assert rows[0].outcome is Verdict.ERROR
    assert rows[1].outcome is Verdict.ALLOW


def test_a_request_nobody_knows_any_more_draws_the_sentinel() -> None:
    sampler, _ = make([ALLOW], [GREEDY])
    sampler.discard("r0")
    sampler.prepare_tensor_args(
        [SimpleNamespace(state=SimpleNamespace(request_id="r0"), has_new_token=True)], torch.zeros(0)
    )
    assert drawn(sampler, torch.zeros(1, VOCABULARY)) == [SENTINEL]


@pytest.mark.parametrize("top_p", [1e-300, 1e-46, 1e-9, 0.1])
def test_the_smallest_nucleus_holds_the_most_likely_token(top_p: float) -> None:
    logits = torch.arange(VOCABULARY, dtype=torch.float32)
    sampling = Sampling(max_tokens=1, temperature=1.0, top_p=top_p)
    assert {draw_token(logits, sampling, None) for _ in range(20)} == {VOCABULARY - 1}


def test_draws_follow_the_probabilities_inside_the_nucleus() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    sampling = Sampling(max_tokens=1, temperature=1.0, top_p=0.75)
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([draw_token(logits, sampling, generator) for _ in range(4000)]), minlength=4)
    assert counts[2:].sum() == 0, "the nucleus is the two most likely"
    assert counts[0] / 4000 == pytest.approx(0.625, abs=0.03), "four standard errors"
