"""One door to the ten generators."""

from __future__ import annotations

import random
from collections.abc import Collection

from artifacts.demo.build import code, facts, languages, mathematics
from artifacts.demo.build.rows import LANGUAGES, SKILLS, Row, Split

_PATIENCE = 200
"""Draws allowed for each distinct row asked for, before a generator counts as exhausted."""


def draw(skill: str, split: Split, rng: random.Random) -> Row:
    """One row of a skill; rows may repeat."""
    match skill:
        case "mathematics":
            return mathematics.draw(split, rng)
        case "code":
            return code.draw(split, rng)
        case "facts":
            return facts.draw(split, rng)
        case _ if skill in LANGUAGES:
            return languages.draw(skill, split, rng)
    raise ValueError(f"unknown skill {skill!r}: expected one of {', '.join(SKILLS)}")


def prompts(skill: str, split: str, n: int, seed: int, *, without: Collection[str] = ()) -> list[Row]:
    """`n` rows with distinct prompts, none of them in `without`; the same for the same arguments.

    Raises ValueError for an unknown skill or split, and when the skill has fewer than `n` different prompts.
    """
    rng = random.Random(f"{seed}/{skill}/{split}")
    found: dict[str, Row] = {}
    for _ in range(n * _PATIENCE):
        if len(found) == n:
            break
        row = draw(skill, Split(split), rng)
        if row.prompt not in without:
            found.setdefault(row.prompt, row)
    if len(found) < n:
        raise ValueError(f"{skill}/{split} gave {len(found)} different prompts, wanted {n}: ask for fewer rows")
    return list(found.values())
