"""One running answer's state, and what its readings mean under its policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from guards.core.part import Part
from guards.core.verdict import GuardMode, Reading, Scope, Stage, Verdict, decide
from server.engines.base import EngineRequest, GuardScore, Hit


@dataclass(frozen=True)
class GuardFacts:
    """What the sampler needs to know of an attached guard. `taus` is empty for an intervention."""

    skill: str
    method: str
    scope: Scope
    parts: tuple[Part, ...]
    taus: tuple[float, ...]


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
    prompt_parts: Mapping[str, tuple[Reading, tuple[float, ...]]] = field(default_factory=dict)
    neurons_shifted: int = 0
    verified: bool = True
    """False from the first token on that no valid reading of every guard stands for."""
    judged: bool = False

    def fail(self, message: str) -> None:
        """Turns the answer into an error; the first reason is kept."""
        self.outcome = Verdict.ERROR
        self.error = self.error or message

    def fail_unverified(self, message: str) -> None:
        """Turns the answer into an error of a guard: a reading is missing, invalid or contradicts what was drawn."""
        self.verified = False
        self.fail(message)

    def judge(
        self, facts: Mapping[str, GuardFacts], readings: Mapping[str, tuple[Reading, tuple[float, ...]]]
    ) -> Verdict:
        """Takes in the readings of the position about to be sampled and returns the answer's verdict.

        An error of any guard wins over an abstention, and both end the answer. A guard of `facts` that is
        missing in `readings` is an error.
        """
        stage = Stage.PROMPT if self.generated == 0 else Stage.GENERATION
        position = len(self.request.prompt_token_ids) - 1 + self.generated
        scores = []
        for name, fact in facts.items():
            reading, parts = readings.get(name, (Reading.MISSING, ()))
            mode = self.request.modes.get(name, GuardMode.ENFORCE)
            verdict = decide(reading, mode, stage.within(fact.scope))
            if verdict is Verdict.ERROR:
                self.fail_unverified(f"guard {name!r} gave {reading.name} at position {position}")
                continue
            score = _summary(name, fact, reading, parts, position, stage)
            scores.append(score)
            if not fact.taus:
                self.neurons_shifted += int(score.score)
            if verdict is not Verdict.ALLOW:
                self.hits.setdefault(name, Hit(score, mode))
            if verdict is Verdict.ABSTAIN and self.outcome is not Verdict.ERROR:
                self.outcome = Verdict.ABSTAIN
        if stage is Stage.PROMPT:
            self.prompt_scores, self.prompt_parts = tuple(scores), dict(readings)
        self.judged = True
        return self.outcome


def _summary(
    name: str, fact: GuardFacts, reading: Reading, parts: Sequence[float], position: int, stage: Stage
) -> GuardScore:
    """The part with the smallest score/tau (detector), or the only part (intervention)."""
    best = min(range(len(parts)), key=lambda i: parts[i] / fact.taus[i]) if fact.taus else 0
    return GuardScore(
        guard=name,
        skill=fact.skill,
        method=fact.method,
        reading=reading,
        score=parts[best],
        tau=fact.taus[best] if fact.taus else None,
        layer=fact.parts[best].layer,
        position=position,
        stage=stage,
        part=fact.parts[best].label,
    )
