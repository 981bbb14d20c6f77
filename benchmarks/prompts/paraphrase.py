"""Paraphrases of English by rule: no model writes them, so they stay close to the text, closer than a user's would."""

import random
import re
from collections.abc import Mapping

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "find": ("determine", "work out"),
    "write": ("create", "implement"),
    "function": ("routine", "method"),
    "check": ("test", "verify"),
    "whether": ("if",),
    "given": ("provided",),
    "list": ("sequence",),
    "string": ("piece of text",),
    "remove": ("delete",),
    "count": ("tally",),
    "largest": ("biggest",),
    "smallest": ("least",),
    "buys": ("purchases",),
    "bought": ("purchased",),
    "sells": ("is selling",),
    "money": ("cash",),
    "total": ("sum",),
    "gives": ("hands",),
    "gave": ("handed",),
    "makes": ("earns", "produces"),
    "children": ("kids",),
    "each": ("every",),
    "also": ("in addition",),
    "twice": ("two times",),
    "left": ("remaining",),
    "needs": ("requires",),
    "following": ("next",),
    "best": ("most closely",),
    "called": ("named",),
    "begin": ("start",),
    "people": ("persons",),
    "large": ("big",),
    "many": ("numerous",),
    "important": ("significant",),
    "house": ("home",),
    "day": ("single day",),
}
"""Common words of the measured questions and what replaces them. "how many" is left alone: it is a phrase."""
_WORD = re.compile(r"\b(?<!how )(" + "|".join(SYNONYMS) + r")\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_BELOW_HUNDRED = re.compile(r"(?<![\d.,:/$£€-])\b\d{1,2}\b(?![.,:/]?\d|[%-])")
"""A whole number below 100 that is no part of a price, a fraction, a date or a larger number."""


def with_synonyms(text: str, rng: random.Random) -> str:
    """Every known word replaced, its capital kept."""

    def replace(match: re.Match[str]) -> str:
        word = match.group(0)
        chosen = rng.choice(SYNONYMS[word.lower()])
        return chosen[0].upper() + chosen[1:] if word[0].isupper() else chosen

    return _WORD.sub(replace, text)


def question_first(text: str) -> str:
    """The last sentence moved to the front; a text of one sentence stays as it is."""
    *told, asked = _SENTENCE.split(text.strip())
    return " ".join([asked, *told])


def numbers_in_words(text: str) -> str:
    """Whole numbers below 100 spelled out."""

    def spell(match: re.Match[str]) -> str:
        number = int(match.group(0))
        if number < len(_SMALL):
            return _SMALL[number]
        ten = _TENS[number // 10 - 2]
        return f"{ten}-{_SMALL[number % 10]}" if number % 10 else ten

    return _BELOW_HUNDRED.sub(spell, text)


def with_typos(text: str, rng: random.Random) -> str:
    """Two neighbouring letters swapped in about every eighth word of four letters or more."""

    def swap(match: re.Match[str]) -> str:
        word = match.group(0)
        if rng.random() >= 1 / 8:
            return word
        at = rng.randrange(1, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return re.sub(r"[^\W\d_]{4,}", swap, text)


def with_wrong_letters(text: str, rng: random.Random, share: float = 0.05) -> str:
    """About `share` of the characters mistyped: a letter or digit is lost, doubled, or a letter becomes another."""
    written = []
    for character in text:
        if not character.isalnum() or rng.random() >= share:
            written.append(character)
            continue
        kind = rng.choice(("lost", "doubled", "other"))
        if kind == "doubled" or (kind == "other" and not (character.isascii() and character.isalpha())):
            written.append(character * 2)
        elif kind == "other":
            other = rng.choice("abcdefghijklmnopqrstuvwxyz")
            written.append(other.upper() if character.isupper() else other)
    return "".join(written)
