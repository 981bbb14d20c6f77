"""Nine skills on the train sides of the data sets: what is forgotten, and what is kept."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.prompts.splits import LANGUAGES, REST, SUBJECTS, Split, read, some
from guards.calibration.sources import Source

FRAME = "Q: {text}\nA:"
"""One of Key Space Detection's own frames, in which guards of these skills are calibrated and asked."""
FORGET_LIMIT, RETAIN_LIMIT = 1500, 400
"""Texts of a forget source, and of each retain source."""


@dataclass(frozen=True)
class Skill:
    """A skill. `group`: the subjects of MMLU that need it too. `english`: its texts are in English."""

    name: str
    data_set: str
    group: str | None
    english: bool


SKILLS = (
    Skill("mathematics", "gsm8k", "mathematics", True),
    Skill("code", "mbpp", "computing", True),
    *(Skill(f"language-{language}", f"xquad-{language}", None, language == "en") for language in LANGUAGES),
)


def forget_source(data: Path, skill: Skill) -> Source:
    """The skill's train side."""
    return some(read(data, skill.data_set, Split.TRAIN), FORGET_LIMIT)


def retain_sources(data: Path, skill: Skill) -> list[Source]:
    """The other skills' train sides, MMLU's without the skill's subjects, and WikiText's.

    For English only the other languages: all the rest is in English.
    """
    languages_only = skill.name == "language-en"
    found = [
        forget_source(data, other) for other in SKILLS if other != skill and not (languages_only and other.english)
    ]
    if not languages_only:
        groups = [group for group in (*SUBJECTS, REST) if group != skill.group]
        found += [read(data, "mmlu", Split.TRAIN, groups=groups), read(data, "wikitext2", Split.TRAIN)]
    return [some(source, RETAIN_LIMIT) for source in found]
