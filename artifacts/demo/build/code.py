"""Requests for short Python functions, some with a name or a constant to use."""

from __future__ import annotations

import random
import re

from artifacts.demo.build.material import table
from artifacts.demo.build.rows import Row, Split
from artifacts.demo.build.wordings import capitalise, decorate, pick, reserved

_CONSTANT = re.compile(r"\bN\b")


def draw(split: Split, rng: random.Random) -> Row:
    """One request; four in ten prescribe a name. Test rows pair functions with names and constants anew."""
    texts = table("functions")
    function = rng.choice(texts["function"])
    name, noun = function["name"], rng.choice(texts["nouns"]["plain"])
    if rng.random() < 0.4:
        name = _choose(texts["nouns"]["names"], function["name"], split, rng)
        noun = rng.choice(texts["nouns"]["named"]).format(name=name)
    description, source = rng.choice(function["says"]), function["source"].replace("NAME", name)
    if _CONSTANT.search(source):
        constant = _choose([str(n) for n in range(2, 51)], function["name"], split, rng)
        description, source = _CONSTANT.sub(constant, description), _CONSTANT.sub(constant, source)
    text = pick(texts["frames"], split, rng).format(f=noun, d=description)
    return Row(decorate(capitalise(text), rng), source)


def _choose(options: list[str], function: str, split: Split, rng: random.Random) -> str:
    return rng.choice([o for o in options if reserved(function, o) == (split is Split.TEST)] or options)
