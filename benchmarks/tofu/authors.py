"""TOFU's questions by author, dealt into what guards are fitted on, what they are chosen on, and what is reported."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from guards.calibration.sources import read_table, seeded_rank
from server.evaluation.kinds import take

QUESTIONS = 20
"""Of each author, one after the other in TOFU's files."""


class Part(StrEnum):
    """What questions are for."""

    FIT = "fit"
    VALIDATION = "validation"
    TEST = "test"


DEAL: Mapping[Part, int] = {Part.FIT: 12, Part.VALIDATION: 4, Part.TEST: 4}
"""How many of each author's questions."""


@dataclass(frozen=True)
class Asked:
    """A question of an author, another wording of it, and its answer."""

    question: str
    paraphrased: str
    answer: str


def read(source: str, authors: int) -> list[Sequence[Asked]]:
    """The first `authors` authors of one of TOFU's files that hold paraphrases, `*_perturbed.json`.

    Raises DataError for a row without one of the fields, SystemExit where there are fewer authors.
    """
    rows = read_table(source).rows
    if len(rows) < authors * QUESTIONS:
        raise SystemExit(
            f"{source}: got {len(rows)} questions, wanted {authors} authors of {QUESTIONS}: lower --authors"
        )
    names = ("question", "paraphrased_question", "answer")
    asked = [Asked(*(take(row, name, str).strip() for name in names)) for row in rows[: authors * QUESTIONS]]
    return [asked[start : start + QUESTIONS] for start in range(0, len(asked), QUESTIONS)]


def dealt(authors: Iterable[Sequence[Asked]], seed: int) -> dict[Part, list[Asked]]:
    """So many questions of each author as DEAL says, drawn by seed and question."""
    found: dict[Part, list[Asked]] = {part: [] for part in DEAL}
    for asked in authors:
        parts = [part for part, count in DEAL.items() for _ in range(count)]
        for index, part in zip(seeded_rank([each.question for each in asked], seed), parts, strict=True):
            found[part].append(asked[index])
    return found


def write(path: Path, asked: Iterable[Asked], *, paraphrased: bool = False) -> Path:
    """Questions and answers as TOFU has them, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"question": each.paraphrased if paraphrased else each.question, "answer": each.answer} for each in asked]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
