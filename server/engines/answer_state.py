"""One running answer's state, and what its readings mean under its policy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from guards.contract.columns import GuardReading
from guards.contract.guard import Health, Part
from guards.core.verdict import Reading, Stage, Verdict, decide
from server.engines.events import Acted, GuardFault, GuardScore, Hit
from server.engines.request import EngineRequest


@dataclass(frozen=True)
class GuardFacts:
    """What judging an answer needs to know of a guard, beside the rule that a request brings.

    `unit` is what an intervention counts, None for a detector.
    """

    skill: str
    method: str
    parts: tuple[Part, ...]
    unit: str | None
    digest: str


@dataclass
class AnswerState:
    """The engine's loop writes readings and draws. The answer's stream reads them, and may call `fail`.

    The two may be different threads, and the loop may be ahead of the stream. So the stream copies a collection before
    it goes over it.
    """

    request: EngineRequest
    generated: int = 0
    outcome: Verdict = Verdict.ALLOW
    error: str | None = None
    hits: dict[str, Hit] = field(default_factory=dict)
    prompt_scores: tuple[GuardScore, ...] = ()
    prompt_parts: Mapping[str, GuardReading] = field(default_factory=dict)
    acted: list[tuple[int, Acted]] = field(default_factory=list)
    """What interventions did, by position."""
    verified: bool = True
    """False from the first token on that no valid reading of every guard stands for."""
    faults: dict[str, GuardFault] = field(default_factory=dict)
    """The first of each guard."""
    judged: bool = False
    prompt_hits: dict[str, dict[int, Hit]] = field(default_factory=dict)
    """By guard and position, inside a prompt whose log-probabilities are asked for."""
    withheld: set[int] = field(default_factory=set)
    """Those positions of which nothing may be told."""
    places: dict[int, Mapping[str, GuardReading]] = field(default_factory=dict)
    """What guards read at each position inside the prompt, where the request keeps that."""

    def fail(self, message: str) -> None:
        """Turns the answer into an error; the first reason is kept."""
        self.outcome = Verdict.ERROR
        self.error = self.error or message

    def fail_unverified(self, message: str) -> None:
        """Turns the answer into an error of a guard: a reading is missing, invalid or contradicts what was drawn."""
        self.verified = False
        self.fail(message)

    def take_acted(self, generated: int, health: Mapping[str, Health], amounts: Sequence[float]) -> None:
        """What interventions did after so many drawn tokens, at a position of which nothing else is told."""
        position = len(self.request.prompt_token_ids) - 1 + generated
        for (name, of), amount in zip(health.items(), amounts, strict=True):
            self.acted.append((position, Acted(name, of.unit, amount)))

    def judge(self, facts: Mapping[str, GuardFacts], readings: Mapping[str, GuardReading]) -> Verdict:
        """Takes in the readings of the position about to be sampled and returns the answer's verdict.

        An error of any guard wins over an abstention, and both end the answer. A guard of `facts` that is
        missing in `readings` is an error. The request's policy has a rule for each guard.
        """
        stage = Stage.PROMPT if self.generated == 0 else Stage.GENERATION
        position = len(self.request.prompt_token_ids) - 1 + self.generated
        scores = []
        for name, score, verdict in self._judge(facts, readings, position, stage):
            scores.append(score)
            if (unit := facts[name].unit) is not None:
                self.acted.append((position, Acted(name, unit, score.score)))
            if verdict is not Verdict.ALLOW:
                self.hits.setdefault(name, Hit(score, self.request.policy.rules[name].mode))
            if verdict is Verdict.ABSTAIN and self.outcome is not Verdict.ERROR:
                self.outcome = Verdict.ABSTAIN
        if stage is Stage.PROMPT:
            self.prompt_scores, self.prompt_parts = tuple(scores), dict(readings)
        self.judged = True
        return self.outcome

    def judge_quiet(self, health: Mapping[str, Health], amounts: Sequence[float]) -> Verdict:
        """As `judge`, of a position in the answer at which every guard read OUTSIDE.

        Nothing of a detector is kept there. `amounts` are what interventions did, in their order.
        """
        assert self.generated > 0, "of a prompt's end all scores are kept"
        self.take_acted(self.generated, health, amounts)
        self.judged = True
        return self.outcome

    def judge_prompt(
        self, facts: Mapping[str, GuardFacts], position: int, readings: Mapping[str, GuardReading]
    ) -> bool:
        """Whether it may be told what the model would have drawn after a token of the prompt.

        As if the prompt ended there, under the same policy; but the answer goes on, unless there is an error.
        """
        if self.request.keeps_places:
            self.places[position] = readings
        for name, score, verdict in self._judge(facts, readings, position, Stage.PROMPT):
            if verdict is not Verdict.ALLOW:
                hit = Hit(score, self.request.policy.rules[name].mode)
                self.prompt_hits.setdefault(name, {})[position] = hit
            if verdict is Verdict.ABSTAIN:
                self.withheld.add(position)
        return position not in self.withheld and self.outcome is not Verdict.ERROR

    def _judge(
        self, facts: Mapping[str, GuardFacts], readings: Mapping[str, GuardReading], position: int, stage: Stage
    ) -> Iterator[tuple[str, GuardScore, Verdict]]:
        """Each guard's score and verdict at a position; one without a valid reading turns the answer into an error."""
        for name, fact in facts.items():
            reading, parts = readings.get(name, (Reading.MISSING, ()))
            rule = self.request.policy.rules[name]
            verdict = decide(reading, rule.mode, stage.within(rule.scope))
            if verdict is Verdict.ERROR:
                self.faults.setdefault(name, GuardFault(name, reading, position, stage, fact.digest))
                self.fail_unverified(f"guard {name!r} gave {reading.name} at position {position}")
                continue
            yield name, _summary(name, fact, rule.taus, reading, parts, position, stage), verdict


def _summary(
    name: str,
    fact: GuardFacts,
    taus: Sequence[float],
    reading: Reading,
    parts: Sequence[float],
    position: int,
    stage: Stage,
) -> GuardScore:
    """The part that is furthest inside, or nearest to it (detector), or the only part (intervention).

    Where nothing fired, among those of the stage's own words: an answer's part says nothing of a prompt.
    """
    outside = reading is Reading.OUTSIDE
    own = [i for i, part in enumerate(fact.parts) if part.reads(stage)] if outside else []
    best = min(own or range(len(parts)), key=lambda i: parts[i] / taus[i]) if taus else 0
    return GuardScore(
        guard=name,
        skill=fact.skill,
        method=fact.method,
        reading=reading,
        score=parts[best],
        tau=taus[best] if taus else None,
        layers=fact.parts[best].layers,
        position=position,
        stage=stage,
        digest=fact.digest,
        part=fact.parts[best].label,
    )
