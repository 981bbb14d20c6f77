"""A data folder of made-up rows in the layout of the measuring data."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.prompts.splits import LANGUAGES, XQUAD_FIRST_TEST, XQUAD_LAST_TRAIN

SHARED_QUESTION = "How many apples are left?"
"""In GSM8K's train and, written otherwise, in its test file."""


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _sum(index: int) -> dict[str, str]:
    return {
        "question": f"What is {index} plus {index}?",
        "answer": f"<<{index}+{index}={2 * index}>>It is {2 * index}.",
    }


def _task(index: int) -> dict[str, Any]:
    return {
        "task_id": index,
        "text": f"Write a function that adds {index}.",
        "code": f"def add_{index}(x):\r\n  return x + {index}",
        "test_list": [f"assert add_{index}(0) == {index}"],
    }


def _asked(language: str, index: int, identity: str) -> dict[str, Any]:
    paragraph = 0 if index in (3, 4) else index
    return {
        "id": identity,
        "lang": language,
        "context": f"{language} paragraph {paragraph} of nothing.",
        "question": f"{language} question {index}?",
        "answers": [f"{language} answer"],
    }


def made_up_data(folder: Path) -> Path:
    """Writes the folder: of XQuAD, rows 3 (train) and 4 (test) share a paragraph with row 0."""
    shared = {"question": SHARED_QUESTION, "answer": "2"}
    _lines(folder / "gsm8k" / "train.jsonl", [*map(_sum, range(60)), shared])
    measured = {**shared, "question": f" {SHARED_QUESTION.upper()}"}
    _lines(folder / "gsm8k" / "test.jsonl", [*map(_sum, range(60, 70)), measured])
    identities = ["0001", "0002", "0003", XQUAD_LAST_TRAIN, XQUAD_FIRST_TEST, "5726f"]
    _lines(folder / "mbpp" / "mbpp.jsonl", map(_task, (1, 10, 11, 510, *range(511, 560))))
    for language in LANGUAGES:
        _lines(
            folder / "xquad" / f"{language}.jsonl",
            (_asked(language, index, identity) for index, identity in enumerate(identities)),
        )
    subjects = ("elementary_mathematics", "computer_security", "virology")
    rows = [
        {"subject": subjects[index % 3], "question": f"Which is {index}?", "choices": list("wxyz"), "answer": 1}
        for index in range(60)
    ]
    _lines(folder / "mmlu" / "mmlu_test.jsonl", rows[3:])
    _lines(folder / "mmlu" / "mmlu_dev.jsonl", rows[:3])
    (folder / "wikitext2").mkdir()
    (folder / "wikitext2" / "valid.txt").write_text("= Heading =\nA line about lobsters .\n", encoding="utf-8")
    (folder / "wikitext2" / "test.txt").write_text("= Heading =\nA line about robots .\n", encoding="utf-8")
    return folder
