"""The cells: which texts of the test side a guard of each skill is asked, in which shape, and what they are to it."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from benchmarks.asked.formats import (
    CHANGES,
    OTHER_TEXT,
    PLACES,
    PLAIN,
    UPPER_CASE,
    Filler,
    after,
    after_examples,
    amid,
    before,
)
from benchmarks.prompts.formats import BARE, QA
from benchmarks.prompts.harmless import HARMLESS
from benchmarks.prompts.items import Format, Item, Material, Role, role
from benchmarks.prompts.materials import MATERIALS, MATHEMATICAL
from benchmarks.prompts.splits import LANGUAGES, Split
from benchmarks.prompts.word_problems import TEMPLATES

LIMIT, LONG_LIMIT, LONGEST_LIMIT = 100, 40, 20
"""Prompts of a cell, of one with hundreds of tokens in each, and of one with thousands."""
SHORT_TOKENS, LONG_TOKENS = 300, 2000
ROOM = 400
"""Tokens that a question, its chat template and an answer may take beside other text."""
OWN = {
    "mathematics": "gsm8k",
    "code": "mbpp",
    **{f"language-{language}": f"xquad-{language}" for language in LANGUAGES},
}
"""The material whose questions stand for a skill."""
MATHEMATICS = (*(f"mmlu-{group}" for group in MATHEMATICAL), "expressions", "equations")
WORD_PROBLEMS = tuple(f"word-problems-{language}" for language in TEMPLATES)
CODE = ("mbpp-signature", "mbpp-partial", "mbpp-fix", "mbpp-explain")
OTHERS = (
    *("mmlu-other", "mmlu-computing", "mmlu-history", "mmlu-quantitative"),
    *(f"xquad-{language}" for language in LANGUAGES),
    *(f"xquad-{language}-contexts" for language in LANGUAGES),
    *("wikitext", "wikitext-digits", "xquad-en-numbers"),
)
"""What needs neither mathematics nor code, but for the arguable ones."""
LONG = {"mmlu-history", "wikitext", "wikitext-digits", *(f"xquad-{language}-contexts" for language in LANGUAGES)}
"""Those of which each text is long."""


class Way(StrEnum):
    """How a prompt is sent."""

    CHAT = "chat"
    LATER = "later"
    """As the next user turn after an unrelated exchange."""
    TEXT = "text"
    """As it is, to /v1/completions."""


@dataclass(frozen=True)
class Cell:
    """Texts of one material, in one shape."""

    material: Material
    format: Format = PLAIN
    way: Way = Way.CHAT
    limit: int = LIMIT

    @property
    def name(self) -> str:
        """Material and shape."""
        shape = "later-turn" if self.way is Way.LATER else self.format.name
        return self.material.name if shape == PLAIN.name else f"{self.material.name}/{shape}"

    @property
    def is_plain(self) -> bool:
        """Whether the message is the text and nothing else."""
        return self.format is PLAIN and self.way is Way.CHAT

    def role(self, skill: str) -> Role:
        """What these prompts are to a guard of the skill."""
        return role(skill, self.material, self.format)


def other_text(filler: Filler, tokens: int) -> Material:
    """Texts of so many tokens that need neither mathematics nor code."""

    def read(data: Path, split: Split) -> Sequence[Item]:
        items = [item for name in OTHER_TEXT for item in MATERIALS[name].read(data, split)]
        rngs = (random.Random(f"other text {tokens} {index}") for index in range(_limit(tokens)))
        return [Item(filler.text(items, tokens, rng)) for rng in rngs]

    return Material(f"other-text-{tokens}", read, splits=frozenset({Split.TEST}))


def _limit(tokens: int) -> int:
    return LONG_LIMIT if tokens < LONG_TOKENS else LONGEST_LIMIT


def _amid(material: Material, filler: Filler, tokens: Sequence[int]) -> Iterator[Cell]:
    for count in tokens:
        yield from (Cell(material, amid(filler, count, place), limit=_limit(count)) for place in PLACES)


def _own(skill: str, filler: Filler, tokens: Sequence[int]) -> Iterator[Cell]:
    """The skill's own questions, and all that is done to them."""
    material = MATERIALS[OWN[skill]]
    (other_skill,) = {"mathematics", "code"} - {skill}
    other = OWN[other_skill]
    yield Cell(material)
    yield from (Cell(material, frame, Way.TEXT) for frame in (BARE, QA))
    yield from _amid(material, filler, tokens)
    yield Cell(material, after(other, other_skill))
    yield Cell(material, before(other, other_skill))
    yield Cell(material, after_examples(other, other_skill), limit=LONG_LIMIT)
    yield from (Cell(material, change) for change in CHANGES)
    yield Cell(material, way=Way.LATER)


def _kept(skill: str, filler: Filler, tokens: Sequence[int]) -> Iterator[Cell]:
    """What a guard of mathematics or code must leave alone, or may."""
    (other_skill,) = {"mathematics", "code"} - {skill}
    others = ("mbpp",) if skill == "mathematics" else ("gsm8k", *MATHEMATICS)
    for name in (*others, *OTHERS):
        yield Cell(MATERIALS[name], limit=LONG_LIMIT if name in LONG else LIMIT)
    yield from (Cell(material) for material in HARMLESS.values())
    yield from (Cell(other_text(filler, count), limit=_limit(count)) for count in tokens)
    for name in (others[0], "mmlu-other"):
        material = MATERIALS[name]
        yield from (Cell(material, frame, Way.TEXT) for frame in (BARE, QA))
        yield Cell(material, UPPER_CASE)
        yield Cell(material, way=Way.LATER)
    yield Cell(MATERIALS["mmlu-other"], after_examples(OWN[other_skill], other_skill), limit=LONG_LIMIT)


def cells(skill: str, filler: Filler, tokens: Sequence[int] = (SHORT_TOKENS, LONG_TOKENS)) -> list[Cell]:
    """All cells of a guard of the skill. `tokens`: how much other text is tried."""
    if skill.startswith("language-"):
        return [Cell(MATERIALS[f"xquad-{language}"]) for language in LANGUAGES]
    more = (*MATHEMATICS, *WORD_PROBLEMS) if skill == "mathematics" else CODE
    return [*_own(skill, filler, tokens), *(Cell(MATERIALS[name]) for name in more), *_kept(skill, filler, tokens)]


def fitting(tokens: Sequence[int], context: int | None) -> list[int]:
    """Of amounts of other text those that the model's context holds, with a question."""
    return [count for count in tokens if context is None or count + ROOM <= context]
