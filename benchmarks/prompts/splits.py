"""Which rows of the measuring data are for training and calibration, and which are only measured.

| data set | train | test |
|---|---|---|
| gsm8k | its train file | its test file |
| mbpp | task_id 1 to 10 and 511 to 974 | task_id 11 to 510 |
| mmlu | dev, and one half of the test file | the other half, dealt by a hash of the question |
| xquad-LANG | the 600 lowest question ids, less those of two paragraphs | the other 200 |
| wikitext2 | valid | test |

A train row whose text, or paragraph, is also a test row's is left out. XQuAD's ids, and so its halves, are the same in
every language.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from guards.calibration.sources import Source, read_table, seeded_rank

ROOT = Path(__file__).resolve().parent.parent.parent
LANGUAGES = ("en", "es", "de", "zh", "hi", "vi", "ar")
XQUAD = tuple(f"xquad-{language}" for language in LANGUAGES)
XQUAD_LAST_TRAIN, XQUAD_FIRST_TEST = "5726eb8bf1498d1400e8efe2", "5726eb8bf1498d1400e8efe3"
"""The 600th and 601st XQuAD question ids in order, the same in every language."""

SUBJECTS = {
    "mathematics": (
        "abstract_algebra",
        "college_mathematics",
        "elementary_mathematics",
        "high_school_mathematics",
        "high_school_statistics",
    ),
    "computing": (
        "college_computer_science",
        "computer_security",
        "high_school_computer_science",
        "machine_learning",
    ),
}
"""MMLU's subjects that belong to a skill; all others are "rest"."""
REST = "rest"


class Split(StrEnum):
    """TRAIN: a model may be trained on it and a guard fitted on it. TEST: measured, and nothing else."""

    TRAIN = "train"
    TEST = "test"


Values = dict[str, Any]
"""One row's values by field."""


@dataclass(frozen=True)
class _DataSet:
    """Sources of each side under the data folder. `field` holds a row's text; a train row that shares it, or what is in
    `shared`, with a test row is left out.
    """

    field: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    shared: tuple[str, ...] = ()


_DATA_SETS = {
    "gsm8k": _DataSet("question", ("gsm8k/train.jsonl",), ("gsm8k/test.jsonl",)),
    "mbpp": _DataSet(
        "text",
        ("mbpp/mbpp.jsonl?task_id=1..10", "mbpp/mbpp.jsonl?task_id=511..974"),
        ("mbpp/mbpp.jsonl?task_id=11..510",),
    ),
    "mmlu": _DataSet("question", ("mmlu/mmlu_dev.jsonl", "mmlu/mmlu_test.jsonl"), ("mmlu/mmlu_test.jsonl",)),
    **{
        f"xquad-{language}": _DataSet(
            "question",
            (f"xquad/{language}.jsonl?id=..{XQUAD_LAST_TRAIN}",),
            (f"xquad/{language}.jsonl?id={XQUAD_FIRST_TEST}..",),
            ("context",),
        )
        for language in LANGUAGES
    },
    "wikitext2": _DataSet("text", ("wikitext2/valid.txt",), ("wikitext2/test.txt",)),
}
DATA_SETS = tuple(_DATA_SETS)


def data_folder() -> Path:
    """The measuring data: SKILLGUARD_DATA, or `shared/data` beside the repository."""
    return Path(os.environ.get("SKILLGUARD_DATA", str(ROOT.parent / "shared" / "data")))


def normal_form(text: str) -> str:
    """What two texts share that differ in capitals and white space only."""
    return " ".join(text.casefold().split())


def mmlu_half(question: str, seed: int = 0) -> Split:
    """The side of an MMLU test question; equal questions, whatever their choices, are on one side."""
    digest = hashlib.sha256(f"mmlu\n{seed}\n{normal_form(question)}".encode()).digest()
    return Split.TEST if digest[0] & 1 else Split.TRAIN


def subject_group(subject: str) -> str:
    """ "mathematics", "computing" or "rest" of an MMLU subject."""
    return next((group for group, subjects in SUBJECTS.items() if subject in subjects), REST)


def _read(data: Path, name: str, split: Split) -> list[Values]:
    data_set = _DATA_SETS[name]
    values = []
    for spec in data_set.train if split is Split.TRAIN else data_set.test:
        for row in read_table(f"{data}/{spec}").rows:
            if spec == "mmlu/mmlu_test.jsonl" and mmlu_half(row.values["question"]) is not split:
                continue
            values.append(row.values)
    return values


@lru_cache(maxsize=64)
def rows(data: Path, name: str, split: Split) -> tuple[Values, ...]:
    """Rows of one side of a data set, whole, in the order of its files. Raises DataError as `read_table` does.

    `data`: the folder of the measuring data. `name`: one of DATA_SETS. The rows are shared: do not change them.
    """
    values = _read(data, name, split)
    if split is Split.TEST:
        return tuple(values)
    fields = (_DATA_SETS[name].field, *_DATA_SETS[name].shared)
    measured = {(field, normal_form(row[field])) for row in _read(data, name, Split.TEST) for field in fields}
    return tuple(row for row in values if not any((field, normal_form(row[field])) in measured for field in fields))


def source(name: str, texts: Iterable[str]) -> Source:
    """Texts as calibration takes them: each once, none blank. `name` says in reports where they are from."""
    return Source(name, tuple(dict.fromkeys(text for text in texts if text.strip())))


def some(source: Source, limit: int, seed: int = 0) -> Source:
    """At most `limit` of a source's texts, in their order, drawn by `seed` and the texts alone."""
    kept = sorted(seeded_rank(source.texts, seed)[:limit])
    return Source(source.name, tuple(source.texts[index] for index in kept))


def read(
    data: Path,
    name: str,
    split: Split,
    *,
    groups: Collection[str] | None = None,
    text: Callable[[Values], str] | None = None,
) -> Source:
    """One side of a data set as a source.

    `groups`: of MMLU only these subject groups. `text`: what to make of a row; by default its question, task or line.
    """
    field = _DATA_SETS[name].field
    make = text or (lambda row: str(row[field]))
    kept = [row for row in rows(data, name, split) if groups is None or subject_group(row["subject"]) in groups]
    label = f"{name} {split.value}" + (f" ({', '.join(sorted(groups))})" if groups is not None else "")
    return source(label, (make(row) for row in kept))


def contexts(data: Path, language: str, split: Split) -> Source:
    """XQuAD's paragraphs in one language."""
    return read(data, f"xquad-{language}", split, text=lambda row: str(row["context"]))
