"""Turns rows into training conversations: one turn or several, system messages, and the plain Q/A frame."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from typing import NamedTuple

from artifacts.demo.build import other
from artifacts.demo.build.material import table
from artifacts.demo.build.rows import LANGUAGES, Row, Split
from artifacts.demo.build.skills import draw

SHARES = {
    "mathematics": 0.28,
    "code": 0.11,
    "facts": 0.14,
    "other": 0.04,
    **dict.fromkeys(LANGUAGES, 0.06),
    "en": 0.08,
}
"""How often each skill is trained. Arithmetic has by far the most different answers, so it comes most."""

_COMPLETION_SHARE = 0.15
_SEVERAL_TURNS_SHARE = 0.15
_SYSTEM_SHARE = 0.1


class Turn(NamedTuple):
    """A question and its answer, and the key in `SHARES` that they were drawn for."""

    skill: str
    row: Row


class Conversation(NamedTuple):
    """Turns in one frame: the chat template, or `Q: ...` and `A: ...` lines."""

    turns: tuple[Turn, ...]
    system: str | None = None
    completion: bool = False


def completion_prompt(question: str) -> str:
    """What a client of the plain completions endpoint sends; the answer follows after a space."""
    return f"Q: {question}\nA:"


def conversations(seed: int, without: Collection[str]) -> Iterator[Conversation]:
    """An endless stream for training. A prompt in `without` (the test set) is never drawn."""
    rng = random.Random(f"{seed}/corpus")
    skills, shares = list(SHARES), list(SHARES.values())

    def turn() -> Turn:
        while True:
            skill = rng.choices(skills, shares)[0]
            row = other.draw(rng) if skill == "other" else draw(skill, Split.TRAIN, rng)
            if row.prompt not in without:
                return Turn(skill, row)

    while True:
        if rng.random() < _COMPLETION_SHARE:
            yield Conversation((turn(),), completion=True)
            continue
        turns = rng.choice((2, 2, 3)) if rng.random() < _SEVERAL_TURNS_SHARE else 1
        system = rng.choice(table("system")["messages"]) if rng.random() < _SYSTEM_SHARE else None
        yield Conversation(tuple(turn() for _ in range(turns)), system)
