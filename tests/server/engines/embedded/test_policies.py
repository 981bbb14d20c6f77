"""The embedded engine: a request is judged under the policy that it brought, whatever others beside it brought."""

import asyncio
from collections.abc import Mapping

import pytest

from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardMode, Reading, Scope, Stage
from guards.errors import PolicyError
from server.engines.base import Load
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.events import FinishReason
from server.engines.options import EmbeddedOptions
from server.engines.request import EngineRequest, Sampling
from tests.served import forget_prompt, retain_prompt
from tests.server.engines.embedded.tiny_engine import Answer, Served, ask, guarded, run, unguarded

NAME = "ksd-tens"
NOTHING, EVERYTHING = 1e-6, 1e30
"""Taus inside which no key vector lies, and every one."""


def under(rule: Rule) -> Policy:
    return Policy({NAME: rule})


def ends(answers: Mapping[str, Answer]) -> dict[str, FinishReason]:
    return {name: answer.finish.reason for name, answer in answers.items()}


async def together(engine: EmbeddedEngine, requests: Mapping[str, tuple[tuple[int, ...], Policy]]) -> dict[str, Answer]:
    """Answers to requests that run at the same time."""
    asked = (ask(engine, prompt, name, policy=policy) for name, (prompt, policy) in requests.items())
    return dict(zip(requests, await asyncio.gather(*asked), strict=True))


def test_the_requests_tau_decides(served: Served) -> None:
    """Of one prompt, one after another on one engine: what came before is not remembered."""

    async def work(engine: EmbeddedEngine) -> list[Answer]:
        (own,) = engine.info.guards[0].rule.taus
        taus = (EVERYTHING, NOTHING, own, EVERYTHING)
        return [
            await ask(engine, retain_prompt(0), f"r{i}", policy=under(Rule(taus=(tau,)))) for i, tau in enumerate(taus)
        ]

    async def plain(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, retain_prompt(0))

    raised, lowered, own, again = run(guarded(served), work)
    free = run(unguarded(served), plain)
    for answer in (raised, again):
        assert (answer.text, answer.finish.reason) == ("", FinishReason.ABSTAIN)
        hit = answer.finish.abstained_on
        assert hit is not None
        assert (hit.score.tau, hit.score.reading, hit.score.stage) == (EVERYTHING, Reading.INSIDE, Stage.PROMPT)
    for answer in (lowered, own):
        assert (answer.text, answer.finish.reason, answer.finish.hits) == (free.text, free.finish.reason, ())
        assert answer.finish.verified
    (of_lowered,), (of_raised,) = lowered.finish.prompt_scores, raised.finish.prompt_scores
    assert (of_lowered.tau, of_lowered.reading) == (NOTHING, Reading.OUTSIDE)
    assert of_lowered.score == pytest.approx(of_raised.score), "the score is the guard's, the tau the request's"


def test_a_lowered_tau_lets_the_skill_out(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, forget_prompt(0), policy=under(Rule(taus=(NOTHING,))))

    async def plain(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, forget_prompt(0))

    let, refused, free = run(guarded(served), work), run(guarded(served), plain), run(unguarded(served), plain)
    assert refused.finish.reason is FinishReason.ABSTAIN, "the control: its own tau"
    assert (let.text, let.finish.reason, let.finish.hits) == (free.text, free.finish.reason, ())


def test_each_request_of_a_batch_has_its_own_verdict(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> tuple[dict[str, Answer], dict[str, FinishReason]]:
        requests = {
            f"{kind.__name__}-{index}-{tau}": (kind(index), under(Rule(taus=(tau,))))
            for index in range(4)
            for kind in (forget_prompt, retain_prompt)
            for tau in (NOTHING, EVERYTHING)
        }
        one = {name: await ask(engine, prompt, name, policy=policy) for name, (prompt, policy) in requests.items()}
        return await together(engine, requests), ends(one)

    answers, alone = run(guarded(served), work)
    assert ends(answers) == alone
    for name, answer in answers.items():
        enforced = name.endswith(str(EVERYTHING))
        assert (answer.finish.reason is FinishReason.ABSTAIN) == enforced
        assert {score.tau for score in answer.finish.prompt_scores} == {EVERYTHING if enforced else NOTHING}
        assert {hit.score.tau for hit in answer.finish.hits} == ({EVERYTHING} if enforced else set())


def test_the_requests_scope_decides(served: Served) -> None:
    """Every position is inside: the scope alone says where that counts."""

    async def work(engine: EmbeddedEngine) -> dict[str, Answer]:
        return await together(
            engine,
            {scope: (retain_prompt(1), under(Rule(scope=scope, taus=(EVERYTHING,)))) for scope in Scope},
        )

    answers = run(guarded(served), work)
    assert set(ends(answers).values()) == {FinishReason.ABSTAIN}
    hits = {scope: answer.finish.abstained_on for scope, answer in answers.items()}
    assert {scope: hit and hit.score.stage for scope, hit in hits.items()} == {
        Scope.PROMPT: Stage.PROMPT,
        Scope.BOTH: Stage.PROMPT,
        Scope.GENERATION: Stage.GENERATION,
    }
    late = answers[Scope.GENERATION].finish
    assert late.completion_tokens == 1, "the first token was drawn; the position after it is judged"
    assert late.prompt_scores[0].reading is Reading.INSIDE, "read there, and left out"


def test_scope_prompt_leaves_what_the_model_writes_alone(served: Served) -> None:
    """A tau just below the prompt's score: the prompt is outside, and what the model writes is not."""

    async def work(engine: EmbeddedEngine) -> list[Answer]:
        (score,) = await engine.check(retain_prompt(1), "read")
        taus = (score.score * 0.999,)
        rules = [Rule(scope=scope, taus=taus) for scope in (Scope.PROMPT, Scope.GENERATION)]
        return [await ask(engine, retain_prompt(1), rule.scope, policy=under(rule)) for rule in rules]

    async def plain(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, retain_prompt(1))

    kept, stopped = run(guarded(served), work)
    assert stopped.finish.reason is FinishReason.ABSTAIN, "the control: something that was written is inside"
    assert (kept.text, kept.finish.hits) == (run(unguarded(served), plain).text, ())


def test_the_requests_mode_decides(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> dict[str, Answer]:
        return await together(
            engine, {mode: (retain_prompt(2), under(Rule(mode, taus=(EVERYTHING,)))) for mode in GuardMode}
        )

    async def plain(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, retain_prompt(2))

    answers, free = run(guarded(served), work), run(unguarded(served), plain)
    assert answers[GuardMode.ENFORCE].finish.reason is FinishReason.ABSTAIN
    watched = answers[GuardMode.SHADOW]
    assert (watched.text, watched.finish.reason) == (free.text, free.finish.reason)
    off = answers.pop(GuardMode.OFF)
    assert (off.text, off.finish.reason, off.finish.hits) == (free.text, watched.finish.reason, ())
    assert off.finish.verified
    for mode, answer in answers.items():
        (hit,) = answer.finish.hits
        assert (hit.mode, hit.score.tau) == (mode, EVERYTHING)


def test_a_check_is_made_under_the_taus_it_is_given(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> list[Reading]:
        policies = [Policy(), *(under(Rule(taus=(tau,))) for tau in (EVERYTHING, NOTHING)), Policy()]
        return [(await engine.check(retain_prompt(0), f"c{i}", each))[0].reading for i, each in enumerate(policies)]

    assert run(guarded(served), work) == [Reading.OUTSIDE, Reading.INSIDE, Reading.OUTSIDE, Reading.OUTSIDE]


def test_what_a_policy_does_not_name_is_under_its_default(served: Served) -> None:
    """Also an intervention, whose rule has no tau."""
    options = EmbeddedOptions(model=str(served[0]), artifacts=served[1:])

    async def work(engine: EmbeddedEngine) -> list[Answer]:
        policies = (Policy(), Policy({"na-tens": Rule()}))
        return [await ask(engine, forget_prompt(0), f"r{i}", policy=policy) for i, policy in enumerate(policies)]

    for answer in run(options, work):
        (hit,) = answer.finish.hits
        assert (answer.finish.reason, hit.mode) == (FinishReason.ABSTAIN, GuardMode.ENFORCE)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Policy({"ksd-ten": Rule(taus=(1.0,))}), "got a rule for guard 'ksd-ten', wanted one of ksd-tens, na-tens"),
        (under(Rule(GuardMode.SHADOW)), r"guard 'ksd-tens': got 0 tau\(s\), wanted one for each of its 1 part"),
        (under(Rule(taus=(1.0, 1.0))), r"guard 'ksd-tens': got 2 tau\(s\), wanted one for each of its 1 part"),
        (Policy({"na-tens": Rule(taus=(1.0,))}), r"guard 'na-tens': got 1 tau\(s\), wanted one for each of its 0 part"),
    ],
    ids=["an unknown guard", "no tau", "two taus", "a tau for an intervention"],
)
def test_a_policy_that_does_not_fit_is_refused_and_nothing_is_queued(
    served: Served, policy: Policy, message: str
) -> None:
    async def work(engine: EmbeddedEngine) -> None:
        for name in ("r", "r"):
            with pytest.raises(PolicyError, match=message):
                engine.submit(EngineRequest(name, retain_prompt(0), Sampling(max_tokens=1), policy))
        assert engine.load() == Load(running=0, waiting=0)
        assert engine._sampler._answers == engine._answers == {}
        assert engine._streams == {}
        assert (await ask(engine, retain_prompt(0), "r")).finish.verified, "its name and its place are free"

    options = EmbeddedOptions(model=str(served[0]), artifacts=served[1:], max_running=1, max_waiting=0)
    run(options, work)
