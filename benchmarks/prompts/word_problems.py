"""Word problems in the six languages other than English, written for this benchmark; held out from every fit.

Twelve per language, each about a, b and c with a divisible by b and larger than b times c, so that no answer is
negative or broken.
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

TEMPLATES: Mapping[str, Sequence[str]] = json.loads(
    (Path(__file__).parent / "word_problems.json").read_text(encoding="utf-8")
)
"""By language; the same twelve stories in every one."""


def word_problems(language: str) -> Iterator[tuple[str, str]]:
    """Problems with their answers, each template with seeded numbers."""
    rng = random.Random(f"word problems {language}")
    for template, answer in zip(TEMPLATES[language], ANSWERS, strict=True):
        for _ in range(FILLINGS):
            b, c = rng.choice((3, 4, 6)), rng.randint(3, 8)
            a = 12 * rng.randint(b * c // 12 + 1, 8)  # below 100, where Arabic counts in one way
            yield template.format(a=a, b=b, c=c), str(answer(a, b, c))
