"""Word problems in the six languages other than English, written for this benchmark.

Twelve stories per language are measured, and six others may be fitted on. Each is about a, b and c with a divisible by
b and larger than b times c, so that no answer is negative or broken.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

FILLINGS = 6
"""Numbers drawn per template."""

ANSWERS: Sequence[Callable[[int, int, int], int]] = (
    lambda a, b, c: a - b * c,
    lambda a, b, c: a // b,
    lambda a, b, c: a + b * c,
    lambda a, b, c: a * b + c,
    lambda a, b, c: a // b * c,
    lambda a, b, c: a - b - c,
    lambda a, b, c: (a + c) * b,
    lambda a, b, c: a * b * c,
    lambda a, b, c: a + b + c,
    lambda a, b, c: a // b + c,
    lambda a, b, c: a * c - b,
    lambda a, b, c: a * b,
)
"""What each of the twelve comes to."""

TRAIN_ANSWERS: Sequence[Callable[[int, int, int], int]] = (
    lambda a, b, c: a + b - c,
    lambda a, b, c: a * b - c,
    lambda a, b, c: a // b,
    lambda a, b, c: a - b + c,
    lambda a, b, c: a * b,
    lambda a, b, c: a - b - c,
)
"""Of the six."""


def _templates(name: str) -> Mapping[str, Sequence[str]]:
    read: Mapping[str, Sequence[str]] = json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
    return read


TEMPLATES = _templates("word_problems.json")
"""By language; the same twelve stories in every one."""
TRAIN_TEMPLATES = _templates("word_problems_train.json")
"""Six others."""


def word_problems(language: str, *, train: bool = False) -> Iterator[tuple[str, str]]:
    """Problems with their answers, each template with seeded numbers."""
    templates, answers = (TRAIN_TEMPLATES, TRAIN_ANSWERS) if train else (TEMPLATES, ANSWERS)
    rng = random.Random(f"{'other ' if train else ''}word problems {language}")
    for template, answer in zip(templates[language], answers, strict=True):
        for _ in range(FILLINGS):
            b, c = rng.choice((3, 4, 6)), rng.randint(3, 8)
            a = 12 * rng.randint(b * c // 12 + 1, 8)  # below 100, where Arabic counts in one way
            yield template.format(a=a, b=b, c=c), str(answer(a, b, c))
