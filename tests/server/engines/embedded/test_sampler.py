"""Judging and drawing, without a model."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guards.contract.columns import Columns, Said
from guards.core.policy import Policy, Rule
from guards.core.verdict import Verdict
from guards.inside.transformers.attach import Rows
from guards.methods.registry import CUBE
from guards.model.shard import WHOLE
from server.engines.answer_state import GuardFacts
from server.engines.embedded.answer_state import EmbeddedAnswerState
from server.engines.embedded.processors import draw_token
from server.engines.embedded.prompt_rows import PromptRows
from server.engines.embedded.sampler import JudgingSampler
from server.engines.request import EngineRequest, Sampling
from tests.guards.samples import cube, cubes

SENTINEL, VOCABULARY = 3, 16
TAU = 1.0
BOUND = CUBE.bind(cubes(cube(0, tau=TAU)), torch.device("cpu"), WHOLE)
FACTS = {"g": GuardFacts("maths", "ksd", BOUND.parts, None, "0" * 64)}
ALLOW, HIT = 2 * TAU, TAU / 2
"""What the cube says: outside, and inside."""


def make(
    said: list[float], sampling: list[Sampling], taus: Sequence[float] = (), **generators: Any
) -> tuple[JudgingSampler, list[EmbeddedAnswerState]]:
    """A sampler with one prepared batch: an answer for each number that the cube says, each under a tau of its own."""
    rows = Rows(torch.tensor(said).unsqueeze(1), frozenset())
    sampler = JudgingSampler(
        FACTS,
        Columns({"g": BOUND}),
        lambda _: rows,
        lambda token: (str(token), b""),
        SENTINEL,
        frozenset({2}),
        PromptRows(torch.nn.Identity()),
        lambda _: None,
    )
    policies = [Policy({"g": Rule(taus=(tau,))}) for tau in taus or [TAU] * len(said)]
    answers = [
        EmbeddedAnswerState(EngineRequest(f"r{i}", (1,), each, policies[i]), generator=generators.get(f"r{i}"))
        for i, each in enumerate(sampling)
    ]
    for answer in answers:
        sampler.add(answer)
    sampler.prepare_tensor_args([row(i) for i in range(len(said))], torch.zeros(0))
    return sampler, answers


def row(index: int) -> SimpleNamespace:
    """A row of the batcher's step."""
    state = SimpleNamespace(request_id=f"r{index}", _eos_token_ids=set(), position_offset=1)
    return SimpleNamespace(state=state, query_length=1, has_new_token=True)


def drawn(sampler: JudgingSampler, logits: torch.Tensor) -> list[int]:
    return sampler(torch.zeros(len(logits)), logits, torch.zeros(0)).argmax(dim=-1).tolist()


GREEDY = Sampling(max_tokens=1, temperature=0)


def test_a_hit_draws_the_sentinel_and_nothing_else() -> None:
    sampler, answers = make([ALLOW, HIT], [GREEDY, Sampling(max_tokens=1, temperature=2.0, logprobs=5)])
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 7] = 50.0
    assert drawn(sampler, logits) == [7, SENTINEL]
    assert [answer.outcome for answer in answers] == [Verdict.ALLOW, Verdict.ABSTAIN]
    assert answers[1].logprobs == []


def test_each_answer_of_a_batch_is_judged_under_its_own_tau() -> None:
    sampler, answers = make([HIT, HIT, ALLOW, ALLOW], [GREEDY] * 4, taus=(HIT / 2, HIT, ALLOW / 2, ALLOW))
    logits = torch.zeros(4, VOCABULARY)
    logits[:, 7] = 1.0
    assert drawn(sampler, logits) == [7, SENTINEL, 7, SENTINEL]
    assert [answer.hits["g"].score.tau for answer in answers if answer.hits] == [HIT, ALLOW]
    assert [answer.prompt_scores[0].tau for answer in answers] == [HIT / 2, HIT, ALLOW / 2, ALLOW]


def test_the_model_never_draws_the_sentinel_itself() -> None:
    sampler, answers = make([ALLOW], [GREEDY])
    logits = torch.zeros(1, VOCABULARY)
    logits[0, SENTINEL], logits[0, 5] = 90.0, 1.0
    assert drawn(sampler, logits) == [5]
    assert answers[0].outcome is Verdict.ALLOW


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_end_their_answer_only(value: float) -> None:
    sampler, answers = make([ALLOW, ALLOW], [GREEDY, GREEDY])
    logits = torch.zeros(2, VOCABULARY)
    logits[0, 4], logits[1, 9] = value, 1.0
    assert drawn(sampler, logits) == [SENTINEL, 9]
    assert [answer.outcome for answer in answers] == [Verdict.ERROR, Verdict.ALLOW]


def test_an_answer_that_cannot_be_drawn_ends_itself_only() -> None:
    hot = Sampling(max_tokens=1, temperature=1.0)
    sampler, answers = make([ALLOW, ALLOW], [hot, GREEDY], r0="no generator")
    logits = torch.zeros(2, VOCABULARY)
    logits[1, 9] = 1.0
    assert drawn(sampler, logits) == [SENTINEL, 9]
    assert answers[0].outcome is Verdict.ERROR
    assert answers[1].outcome is Verdict.ALLOW


def test_a_request_nobody_knows_any_more_draws_the_sentinel() -> None:
    sampler, _ = make([ALLOW], [GREEDY])
    sampler.discard("r0")
    of_nobody = row(0)
    sampler.prepare_tensor_args([of_nobody], torch.zeros(0))
    assert drawn(sampler, torch.zeros(1, VOCABULARY)) == [SENTINEL]
    assert of_nobody.state._eos_token_ids == {SENTINEL}, "which ends it"


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


def of_many(said: list[list[float]], drawn_before: int, facts: Mapping[str, GuardFacts] | None = None) -> Any:
    """As `make`, with a guard for each number of a row, in the midst of answers."""
    bound = {f"g{i}": BOUND for i in range(len(said[0]))}
    columns, rows = Columns(bound), Rows(torch.tensor(said), frozenset())
    facts = dict.fromkeys(bound, FACTS["g"]) if facts is None else facts
    text, stops, none = (lambda token: (str(token), b"")), frozenset({2}), PromptRows(torch.nn.Identity())
    sampler = JudgingSampler(facts, columns, lambda _: rows, text, SENTINEL, stops, none, lambda _: None)
    policy = Policy(dict.fromkeys(facts, Rule(taus=(TAU,))))
    answers = [
        EmbeddedAnswerState(EngineRequest(f"r{i}", (1,), GREEDY, policy), generated=drawn_before)
        for i in range(len(said))
    ]
    for answer in answers:
        sampler.add(answer)
    sampler.prepare_tensor_args([row(i) for i in range(len(said))], torch.zeros(0))
    return sampler, answers


def test_guards_are_gone_over_only_where_one_has_something_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    reading = Columns.reading

    def heard(self: Columns, said: Said, row: int) -> Any:
        told.append(row)
        return reading(self, said, row)

    monkeypatch.setattr(Columns, "reading", heard)
    sampler, answers = of_many([[ALLOW, ALLOW], [ALLOW, HIT], [torch.nan, ALLOW]], drawn_before=1)
    assert drawn(sampler, torch.zeros(3, VOCABULARY)) == [0, SENTINEL, SENTINEL]
    assert [answer.outcome for answer in answers] == [Verdict.ALLOW, Verdict.ABSTAIN, Verdict.ERROR]
    assert [answer.judged for answer in answers] == [True] * 3
    assert told == [1, 2], "the first row says nothing of any guard"
    sampler, (answer,) = of_many([[ALLOW, ALLOW]], drawn_before=0)
    assert drawn(sampler, torch.zeros(1, VOCABULARY)) == [0]
    assert len(answer.prompt_scores) == 2, "of a prompt's end all are kept"


def test_a_guard_without_a_column_is_missed_among_quiet_ones() -> None:
    facts = dict.fromkeys(("g0", "g1", "of nobody"), FACTS["g"])
    sampler, (answer,) = of_many([[ALLOW, ALLOW]], drawn_before=1, facts=facts)
    assert drawn(sampler, torch.zeros(1, VOCABULARY)) == [SENTINEL]
    assert (answer.outcome, answer.verified) == (Verdict.ERROR, False)
