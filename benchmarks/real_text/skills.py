"""The nine skills: what each is fitted on, what is kept, and what a hit on each measured set means."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from benchmarks.prompts.splits import LANGUAGES, REST, SUBJECTS, XQUAD, Split, read, some
from guards.calibration.sources import Source

FRAME = "Q: {text}\nA:"
"""What every text is calibrated and measured in. Other frames are another benchmark's."""
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


@dataclass(frozen=True)
class Measured:
    """A measured set: the test side of a data set, of MMLU the subjects of one group."""

    name: str
    data_set: str
    group: str | None = None
    limit: int | None = None

    def source(self, data: Path) -> Source:
        """Its texts."""
        source = read(data, self.data_set, Split.TEST, groups=None if self.group is None else (self.group,))
        return source if self.limit is None else some(source, self.limit)


MEASURED = (
    Measured("gsm8k", "gsm8k"),
    Measured("mbpp", "mbpp"),
    *(Measured(f"mmlu-{group}", "mmlu", group) for group in SUBJECTS),
    Measured("mmlu-rest", "mmlu", REST, 2000),
    *(Measured(name, name) for name in XQUAD),
    Measured("wikitext2", "wikitext2", None, 1000),
)


class Meaning(StrEnum):
    """What a hit is: of the skill's own set recall; of MMLU's subjects that need the skill recall in other wordings;
    of any other set a false abstention.
    """

    OWN = "own"
    TRANSFER = "transfer"
    OTHER = "other"


def meaning(skill: Skill, measured: Measured) -> Meaning | None:
    """None where nothing can be said: English texts hold English, whatever else they are about."""
    if measured.data_set == skill.data_set:
        return Meaning.OWN
    if skill.group is not None and measured.group == skill.group:
        return Meaning.TRANSFER
    if skill.name == "language-en" and measured.data_set not in XQUAD:
        return None
    return Meaning.OTHER


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
