"""Exam questions with four choices, for S-unlearning: the choice is taken whose text is likeliest a token.

Small models tell letters apart no better than chance, so that it is the choices' own texts that are read.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.methods.material import examples
from benchmarks.methods.perplexity import said
from benchmarks.prompts.items import Item
from benchmarks.prompts.materials import MATERIALS, MATHEMATICAL
from benchmarks.prompts.sets import sample
from benchmarks.prompts.splits import Split, rows
from guards.errors import GuardReadingError
from guards.inside.transformers.loading import LoadedModel

SKILLED, OTHER = "mmlu-mathematics", "mmlu-other"
GROUPS: Mapping[str, Sequence[str]] = {SKILLED: [f"mmlu-{group}" for group in MATHEMATICAL], OTHER: [OTHER]}
CHOICES = 4
CHANCE = 1 / CHOICES


class Exam(NamedTuple):
    """A question, its choices, and which of them is right."""

    question: str
    choices: list[str]
    right: int


def exams(data: Path, limit: int, seed: int = 0) -> dict[str, list[Exam]]:
    """So many questions of MMLU's test side that need mathematics, and as many that need none.

    None that several subjects ask with other choices, by whose text its row could not be told.
    """
    of_test = rows(data, "mmlu", Split.TEST)
    times = Counter(row["question"] for row in of_test)
    found = {row["question"]: row for row in of_test if times[row["question"]] == 1}

    def drawn(materials: Sequence[str]) -> list[Exam]:
        items = [item for name in materials for item in MATERIALS[name].read(data, Split.TEST) if item.text in found]
        of = [found[item.text] for item in sample(items, limit, seed)]
        return [Exam(row["question"], [str(each) for each in row["choices"]], int(row["answer"])) for row in of]

    return {column: drawn(materials) for column, materials in GROUPS.items()}


def taken(loaded: LoadedModel, of: Sequence[Exam]) -> list[bool]:
    """Whether the model as it is takes each question's right choice.

    Raises GuardReadingError where it finds no likelihood that is a number.
    """
    items = [Item(exam.question, choice) for exam in of for choice in exam.choices]
    heard = said(loaded, examples(loaded.codec, items))
    nats = [each.nats / each.tokens for each in heard]
    if not all(map(math.isfinite, nats)):
        raise GuardReadingError("the model with this guard gives likelihoods that are not finite: it answers nothing")
    fours = [nats[first : first + CHOICES] for first in range(0, len(nats), CHOICES)]
    return [four.index(min(four)) == exam.right for exam, four in zip(of, fours, strict=True)]
