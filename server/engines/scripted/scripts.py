"""What the scripted engine plays: answers, abstentions, guards and readings, each made by one call.

A script is a sequence of steps: events to emit, and `asyncio.Event`s to wait for, by which a test makes an answer as
slow as it likes without sleeping.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from guards.core.policy import Rule
from guards.core.verdict import GuardKind, GuardMode, Reading, Stage
from server.engines.base import GuardInfo, TemplateState
from server.engines.events import Chunk, Event, Finish, FinishReason, GuardScore, Hit

Step = Event | asyncio.Event
TAU = 0.5


@dataclass(frozen=True)
class Script:
    """What to do for a prompt. `when` sees the prompt's text; the first script that takes a prompt plays."""

    steps: tuple[Step, ...]
    when: Callable[[str], bool] = lambda prompt: True
    given_up: Finish | None = None
    """What is known of the answer where it is given up before its Finish; by default what was sent of it."""


def answer(*pieces: str, reason: FinishReason = FinishReason.STOP, hits: tuple[Hit, ...] = ()) -> tuple[Event, ...]:
    """Steps of an answer that nothing withholds, a token for each piece; `hits` are those of shadowed guards."""
    finish = Finish(reason, prompt_tokens=0, completion_tokens=len(pieces), verified=True, hits=hits)
    return (*(Chunk(piece, tokens=1) for piece in pieces), finish)


def abstention(hit: Hit, *pieces: str) -> tuple[Event, ...]:
    """Steps of an answer that a guard ends after some pieces; the sentinel's own token counts as spent."""
    finish = Finish(
        FinishReason.ABSTAIN, prompt_tokens=0, completion_tokens=len(pieces) + 1, verified=True, hits=(hit,)
    )
    return (*(Chunk(piece, tokens=1) for piece in pieces), finish)


def guard(name: str = "demo", skill: str = "cooking", kind: GuardKind = GuardKind.DETECTOR) -> GuardInfo:
    """A guard as an engine would describe it."""
    return GuardInfo(
        name=name,
        skill=skill,
        method="ksd",
        kind=kind,
        rule=Rule(taus=(TAU,) if kind is GuardKind.DETECTOR else ()),
        layers=(1, 2),
        frames=("chat",),
        template_sha256=None,
        template=TemplateState.VERIFIED,
        digest="0" * 64,
        detail={"cubes": 4},
    )


def score(of: GuardInfo, reading: Reading = Reading.OUTSIDE, stage: Stage = Stage.PROMPT) -> GuardScore:
    """A reading of a guard: half its threshold inside, twice outside."""
    return GuardScore(
        guard=of.name,
        skill=of.skill,
        method=of.method,
        reading=reading,
        score=0.25 if reading is Reading.INSIDE else 1.0,
        tau=TAU,
        layers=of.layers[:1],
        position=7,
        stage=stage,
        digest=of.digest,
        part="cube 0",
    )


def hit(of: GuardInfo, stage: Stage = Stage.PROMPT, mode: GuardMode = GuardMode.ENFORCE) -> Hit:
    """A hit of a guard."""
    return Hit(score(of, Reading.INSIDE, stage), mode)
