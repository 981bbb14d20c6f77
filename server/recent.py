"""The last verdicts, kept in memory: for whoever watches, not for the record, which is the audit log. No text.

Each process keeps its own, and forgets them when it ends.
"""

import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from guards.core.verdict import GuardKind, GuardMode, Stage, Verdict
from server.audit.auditor import Asked
from server.auth import Caller
from server.engines.base import GuardInfo
from server.engines.events import Finish, FinishReason, GuardScore
from server.engines.request import EngineRequest

MOST = 1000
"""Answers that are kept; older ones are dropped."""


@dataclass(frozen=True)
class GuardVerdict:
    """What one detector made of an answer. `score` is its reading of the prompt, by the part nearest to firing.

    `over_tau`: that score over the artifact's own tau, which no change of the policy moves. `stage` and `position` say
    where it fired.
    """

    guard: str
    digest: str
    """Of the artifact that judged."""
    mode: str
    verdict: Verdict
    score: float | None
    tau: float | None
    part: str | None
    over_tau: float | None
    quantile: tuple[float, float] | None
    stage: Stage | None
    position: int | None

    def told(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "guard": self.guard,
            "digest": self.digest,
            "mode": self.mode,
            "verdict": self.verdict.value,
            "score": self.score,
            "tau": self.tau,
            "part": self.part,
            "over_tau": self.over_tau,
            "quantile": None if self.quantile is None else list(self.quantile),
            "stage": None if self.stage is None else self.stage.value,
            "position": self.position,
        }


@dataclass(frozen=True)
class RecentAnswer:
    """One answer that ended."""

    at: float
    """Unix time."""
    asked: Asked
    outcome: str
    prompt_tokens: int
    completion_tokens: int
    policy: str
    guards: tuple[GuardVerdict, ...]

    def told(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "time": self.at,
            "request": self.asked.request,
            "route": self.asked.route,
            "key": self.asked.caller.name,
            "tenant": self.asked.caller.tenant,
            "outcome": self.outcome,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "policy": self.policy,
            "guards": [each.told() for each in self.guards],
        }


class RecentAnswers:
    """The last `MOST` of them."""

    def __init__(self) -> None:
        self._kept: deque[RecentAnswer] = deque(maxlen=MOST)

    def add(self, asked: Asked, request: EngineRequest, finish: Finish, guards: Iterable[GuardInfo]) -> None:
        """Takes in an answer that ended. Its policy has a rule for each guard."""
        told = tuple(_verdict(guard, request, finish) for guard in guards if guard.kind is GuardKind.DETECTOR)
        self._kept.append(
            RecentAnswer(
                at=time.time(),
                asked=asked,
                outcome=_outcome(finish),
                prompt_tokens=finish.prompt_tokens,
                completion_tokens=finish.completion_tokens,
                policy=request.policy.version,
                guards=told,
            )
        )

    def of(self, caller: Caller, most: int) -> list[RecentAnswer]:
        """Those that a caller may see, the newest first: of its own tenant."""
        found: list[RecentAnswer] = []
        for each in reversed(self._kept):
            if len(found) == most:
                break
            if caller.sees_all_tenants or each.asked.caller.tenant == caller.tenant:
                found.append(each)
        return found


def _outcome(finish: Finish) -> str:
    if finish.reason is FinishReason.ABSTAIN:
        return "abstained"
    if finish.reason is FinishReason.GIVEN_UP and finish.verified:
        return "given_up"
    return "answered" if finish.verified and finish.reason is not FinishReason.ERROR else "error"


def _verdict(guard: GuardInfo, request: EngineRequest, finish: Finish) -> GuardVerdict:
    read = (each for each in finish.prompt_scores if each.guard == guard.name and math.isfinite(each.score))
    score = next(read, None)
    hit = next((each for each in finish.hits if each.score.guard == guard.name), None)
    verdict = Verdict.ALLOW
    if hit is not None:
        verdict = Verdict.ABSTAIN if hit.mode is GuardMode.ENFORCE else Verdict.SHADOW
    elif any(fault.guard == guard.name for fault in finish.faults):
        verdict = Verdict.ERROR
    return GuardVerdict(
        guard=guard.name,
        digest=guard.digest,
        mode=request.policy.rules.get(guard.name, guard.rule).mode.value,
        verdict=verdict,
        score=None if score is None else score.score,
        tau=None if score is None else score.tau,
        part=None if score is None else score.part,
        over_tau=_over_tau(guard, score),
        quantile=None if score is None else guard.place_of(score),
        stage=None if hit is None else hit.score.stage,
        position=None if hit is None else hit.score.position,
    )


def _over_tau(guard: GuardInfo, score: GuardScore | None) -> float | None:
    if score is None or score.part not in guard.parts:
        return None
    tau = guard.rule.taus[guard.parts.index(score.part)]
    return score.score / tau if tau > 0 else None
