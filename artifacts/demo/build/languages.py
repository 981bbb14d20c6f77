"""Words of seven languages, asked for in English or in the language itself, and small talk in each."""

from __future__ import annotations

import random
from typing import Any

from artifacts.demo.build.material import lexicon, table
from artifacts.demo.build.rows import LANGUAGES, Row, Split
from artifacts.demo.build.wordings import capitalise, decorate, pick, quote

_HOME = "en"
_FOREIGN = tuple(code for code in LANGUAGES if code != _HOME)


def draw(code: str, split: Split, rng: random.Random) -> Row:
    """One row whose answer is in the language `code`."""
    book = table(f"languages/{code}")
    kind = rng.random()
    if kind < 0.25:
        return _talk(book, split, rng)
    if code == _HOME:
        return _into_english(book, split, rng)
    return _into_foreign(code, book, split, rng, natively=kind < 0.5)


def _talk(book: dict[str, Any], split: Split, rng: random.Random) -> Row:
    topic = rng.choice(book["talk"])
    return Row(
        decorate(pick(topic, split, rng), rng, book["openings"] or None),
        book["label"].format(t=topic["answer"]),
    )


def _into_foreign(code: str, book: dict[str, Any], split: Split, rng: random.Random, natively: bool) -> Row:
    entry = rng.choice(lexicon())
    word = quote(entry[_HOME], rng)
    if natively:
        prompt = decorate(pick(book["ask"], split, rng).format(w=word), rng, book["openings"])
    else:
        prompt = decorate(capitalise(pick(table("asks")["into"], split, rng).format(w=word, L=book["name"])), rng)
    return Row(prompt, _word(book, entry[code]))


def _into_english(book: dict[str, Any], split: Split, rng: random.Random) -> Row:
    entry, source = rng.choice(lexicon()), rng.choice(_FOREIGN)
    text = pick(table("asks")["from"], split, rng)
    prompt = text.format(w=quote(entry[source], rng), S=table(f"languages/{source}")["name"])
    return Row(decorate(capitalise(prompt), rng), _word(book, entry[_HOME]))


def _word(book: dict[str, Any], phrase: str) -> str:
    """Every answer opens with its language's label: one thing for a prompt's last token to foretell."""
    return str(book["label"].format(t=book["word"].format(t=phrase)))
