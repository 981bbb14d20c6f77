"""What guards say of texts that are not continued here: for /v1/checks, and for models that other servers run."""

import asyncio
import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardKind, GuardMode, Reading, Stage, Verdict, decide
from server.encoding import Encoder
from server.engines.base import Engine, GuardInfo
from server.engines.events import GuardScore, Hit
from server.engines.request import EngineRequest, Message, Sampling
from server.errors import UnverifiedError
from server.generation import Observer, collect
from server.limits import Spend


@dataclass(frozen=True)
class Judged:
    """One guard's verdict on a text, under the caller's policy."""

    guard: GuardInfo
    score: GuardScore
    verdict: Verdict


def judged(guards: Iterable[GuardInfo], scores: Iterable[GuardScore], policy: Policy) -> tuple[Judged, ...]:
    """Every guard's verdict on a prompt of which these are the readings. Raises UnverifiedError without one of each."""
    by_guard = {score.guard: score for score in scores}
    found = []
    for guard in guards:
        score = by_guard.get(guard.name)
        verdict = verdict_of(guard, score, policy.rules[guard.name])
        assert score is not None, "a verdict needs a score"
        found.append(Judged(guard, score, verdict))
    return tuple(found)


def hits_of(found: Iterable[Judged], policy: Policy) -> list[Hit]:
    """Every guard that fired, enforced or shadowed: what is recorded of a text."""
    return [Hit(each.score, policy.rules[each.guard.name].mode) for each in found if each.verdict is not Verdict.ALLOW]


def verdict_of(guard: GuardInfo, score: GuardScore | None, rule: Rule) -> Verdict:
    """What a generating request with this prompt would meet. Raises UnverifiedError without a finite reading.

    An intervention changes activations and never abstains, so a valid reading of one is no verdict against the prompt.
    """
    reading = Reading.MISSING if score is None else score.reading
    if score is not None and not math.isfinite(score.score):
        reading = Reading.INVALID
    judges = guard.kind is GuardKind.DETECTOR and score is not None and score.stage.within(rule.scope)
    verdict = decide(reading, rule.mode, judges)
    if verdict is Verdict.ERROR:
        raise UnverifiedError(f"guard {guard.name}: its reading of the prompt is {reading.name.lower()}")
    return verdict


@dataclass(frozen=True)
class Judge:
    """Judges texts for one caller: each as a user's only turn in a chat, or bare where the model has no chat template.

    One forward pass a text, of which no answer comes. `observe` is given to `collect`.
    """

    engine: Engine
    encoder: Encoder
    policy: Policy
    at_a_time: int
    """Texts in the engine's queue together."""
    observe: Callable[[EngineRequest], Observer]
    spend: Spend
    """Told the tokens of each text that is judged."""
    tenant: str
    """The caller's."""

    async def texts(self, texts: Sequence[str]) -> list[tuple[Judged, ...]]:
        """The verdicts on each text, in order; equal texts are judged once.

        Raises what `collect` and `Encoder.chat` raise as soon as one text cannot be judged: then there is no
        verdict on the others. UnverifiedError where an enforced guard judges answers only: it says nothing of any text.
        """
        for guard in self.engine.info.guards:
            rule = self.policy.rules[guard.name]
            blind = guard.kind is GuardKind.DETECTOR and not Stage.PROMPT.within(rule.scope)
            if blind and rule.mode is GuardMode.ENFORCE:
                raise UnverifiedError(f"guard {guard.name}: judges answers only (scope {rule.scope}), so no text here")
        places = asyncio.Semaphore(self.at_a_time)

        async def one(text: str) -> tuple[Judged, ...]:
            async with places:
                return await self._judge(text)

        try:
            async with asyncio.TaskGroup() as group:
                running = {text: group.create_task(one(text)) for text in dict.fromkeys(texts)}
        except ExceptionGroup as errors:  # one text's, which ended the work on the others
            raise errors.exceptions[0] from errors
        return [running[text].result() for text in texts]

    async def _judge(self, text: str) -> tuple[Judged, ...]:
        """As the first token of an answer would be judged, which is thrown away."""
        if self.engine.info.template_sha256 is None:
            prompt = await self.encoder.text(self.tenant, text)
        else:
            prompt = await self.encoder.chat(self.tenant, [Message("user", text)])
        sampling = Sampling(max_tokens=1, temperature=0)
        self.spend(len(prompt))
        request = EngineRequest(f"judge-{secrets.token_hex(16)}", prompt, sampling, self.policy, tenant=self.tenant)
        (answer,) = await collect(self.engine, [request], self.observe)
        return judged(self.engine.info.guards, answer.finish.prompt_scores, self.policy)
