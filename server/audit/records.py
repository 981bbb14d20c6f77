"""What records say. `docs/operating.md` lists the fields; none of them is a caller's text but `text`."""

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum

from guards.core.policy import Rule
from guards.core.verdict import GuardMode
from server.engines.base import EngineInfo, GuardInfo
from server.engines.events import Finish, GuardScore, Hit

Fields = dict[str, object]


class Kind(StrEnum):
    """What a record is of."""

    START = "start"
    """The server is about to verify its guards: which they are, and how they judge."""
    STOP = "stop"
    CANARIES = "canaries"
    """A guard's canaries went through the live engine."""
    ABSTENTION = "abstention"
    """A hit that ended an answer."""
    HIT = "hit"
    """A hit of an enforced guard beside the one that ended the answer, or where an error did."""
    SHADOW_HIT = "shadow_hit"
    PROMPT_HIT = "prompt_hit"
    """Hits inside a prompt whose log-probabilities were asked for."""
    CHECK = "check"
    """A guard that fires on a prompt that was only checked."""
    SCORE = "score"
    """A guard's reading of a prompt, whether it fired or not."""
    ERROR = "error"
    ADMIN = "admin"
    """What an operator changed while the server ran."""


def now() -> str:
    """UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def record(kind: Kind, **fields: object) -> Fields:
    """A record of now."""
    return {"time": now(), "kind": kind.value, **fields}


def rule_fields(guard: GuardInfo, rule: Rule) -> Fields:
    """A guard as it judges."""
    return {
        "guard": guard.name,
        "skill": guard.skill,
        "digest": guard.digest,
        "mode": rule.mode.value,
        "scope": rule.scope.value,
        "taus": list(rule.taus),
        "template": guard.template.value,
        **({"signed_by": list(guard.signed_by)} if guard.signed_by else {}),
    }


def start_fields(info: EngineInfo, rules: Mapping[str, Rule]) -> Fields:
    """What runs."""
    return {
        "engine": f"{info.engine} {info.engine_version}",
        "model": info.model,
        "guards": [rule_fields(guard, rules[guard.name]) for guard in info.guards],
    }


def score_fields(score: GuardScore) -> Fields:
    """Which guard, and what it read where. `position` counts the prompt's tokens and the answer's from 0."""
    return {
        "guard": score.guard,
        "skill": score.skill,
        "method": score.method,
        "stage": score.stage.value,
        "position": score.position,
        "part": score.part,
        "layers": list(score.layers),
        "score": score.score if math.isfinite(score.score) else None,
        "tau": score.tau,
        "digest": score.digest,
    }


def hits_of(finish: Finish) -> Iterator[tuple[Kind, Hit, Fields]]:
    """Every hit that an answer ended with, each with what is said of its kind alone."""
    ended_by = finish.abstained_on
    for hit in finish.hits:
        if hit.mode is GuardMode.SHADOW:
            yield Kind.SHADOW_HIT, hit, {}
        else:
            yield Kind.ABSTENTION if hit is ended_by else Kind.HIT, hit, {}
    for hits in finish.prompt_hits:
        yield Kind.PROMPT_HIT, hits.first, {"positions": hits.positions}
