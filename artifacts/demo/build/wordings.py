"""Choosing a wording that a split may use, and dressing it up as people do."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence

from artifacts.demo.build.material import table
from artifacts.demo.build.rows import Split

_EXTRA_SHARE = 0.35
"""Share of calibration rows in a wording of their own; the rest use training wordings."""

_DECORATED_SHARE = 0.5
_QUOTES = ("'{}'",) * 4 + ('"{}"',) * 2 + ("\u201c{}\u201d", "\u2018{}\u2019", "{}", "{}")
_LAST_MARKS = "?!.\uff1f\u3002\u061f\u0964"
"""Ends of sentences in all seven languages."""


def pick(wordings: Mapping[str, Sequence[str]], split: Split, rng: random.Random) -> str:
    """A wording of a `{train, calibration, test}` table that `split` may use."""
    extra = wordings.get("calibration", ())
    if split is Split.CALIBRATION and extra and rng.random() < _EXTRA_SHARE:
        return rng.choice(extra)
    return rng.choice(wordings["test" if split is Split.TEST else "train"])


def reserved(*key: object) -> bool:
    """Whether a combination (two numbers, a function and a name) is kept for the test split: one in eight.

    A checksum rather than a drawn sample, so that the answer needs no state and never moves with the seed.
    """
    return zlib.crc32("/".join(map(str, key)).encode()) % 8 == 0


def quote(phrase: str, rng: random.Random) -> str:
    """The phrase in one of the ways people set off a word they ask about, or bare."""
    return rng.choice(_QUOTES).format(phrase)


def capitalise(text: str) -> str:
    """Upper-case the first letter and leave the others alone (`str.capitalize` would not)."""
    return text[:1].upper() + text[1:]


def decorate(text: str, rng: random.Random, openings: Sequence[str] | None = None) -> str:
    """Half of the time, add a greeting or thanks, or be sloppy about case, spaces and the last mark.

    `openings` are those of the prompt's language; without them the English ones and English thanks are used.
    """
    if rng.random() >= _DECORATED_SHARE:
        return text
    english = table("decorations")
    if rng.random() < 0.4:
        opening = rng.choice(english["openings"] if openings is None else openings)
        text = opening + (text[:1].lower() + text[1:] if rng.random() < 0.8 else text)
    if openings is None and rng.random() < 0.2:
        text += rng.choice(english["closings"])
    if rng.random() < 0.3:
        text = text.rstrip(_LAST_MARKS)
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.15:
        text = _widen_a_space(text, rng)
    return text.strip()


def _widen_a_space(text: str, rng: random.Random) -> str:
    places = [index for index, letter in enumerate(text) if letter == " "]
    if not places:
        return text
    place = rng.choice(places)
    return f"{text[:place]} {text[place:]}"
