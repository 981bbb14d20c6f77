"""Questions about things that are simply so: capitals, colours, opposites, who wrote what."""

from __future__ import annotations

import random
from functools import cache
from typing import Any, NamedTuple

from artifacts.demo.build.material import table
from artifacts.demo.build.rows import Row, Split
from artifacts.demo.build.wordings import capitalise, decorate, pick


class Fact(NamedTuple):
    """What `relation` says of `subject`."""

    relation: str
    subject: str
    value: str


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact the model is taught."""
    return tuple(
        Fact(relation, *pair.split(": ", 1))
        for relation, entry in table("facts").items()
        if relation != "frames"
        for pair in entry["pairs"]
    )


def draw(split: Split, rng: random.Random) -> Row:
    """One question about a known fact.

    Six in ten put a noun phrase into a frame that all relations share; the rest are its relation's own.
    """
    fact = rng.choice(facts())
    relation: dict[str, Any] = table("facts")[fact.relation]
    if rng.random() < 0.6:
        text = pick(table("facts")["frames"], split, rng).format(np=rng.choice(relation["phrases"]))
    else:
        text = pick(relation, split, rng)
    prompt = decorate(capitalise(text.format(x=fact.subject)), rng)
    return Row(prompt, relation["answer"].format(x=fact.subject, y=fact.value))
