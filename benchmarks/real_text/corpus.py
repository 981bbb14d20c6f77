"""Training documents: rows of the train splits in drawn forms, each data set at its share of the bytes."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.prompts.splits import XQUAD, Split, Values, rows
from benchmarks.real_text import formats

Form = Callable[[random.Random, Values], str]


@dataclass(frozen=True)
class Part:
    """A data set, how its rows are written, and its share of the bytes."""

    name: str
    form: Form
    share: float


PARTS = (
    Part("gsm8k", formats.gsm8k, 0.22),
    Part("mbpp", formats.mbpp, 0.10),
    Part("mmlu", formats.mmlu, 0.22),
    Part("wikitext2", formats.wikitext, 0.16),
    *(Part(name, formats.xquad, 0.30 / len(XQUAD)) for name in XQUAD),
)


def _part(data: Path, part: Part, seed: int) -> Iterator[str]:
    """Documents of one data set without end, every row once before any a second time."""
    draw = random.Random(f"{seed}/{part.name}")
    every = list(rows(data, part.name, Split.TRAIN))
    while True:
        draw.shuffle(every)
        for row in every:
            yield part.form(draw, row)


def documents(data: Path, seed: int) -> Iterator[str]:
    """Training documents without end, the same for the same data and seed.

    The next one is always of the data set that is furthest below its share.
    """
    streams = [_part(data, part, seed) for part in PARTS]
    used = [0.0] * len(PARTS)
    while True:
        index = min(range(len(PARTS)), key=lambda place: used[place] / PARTS[place].share)
        document = next(streams[index])
        used[index] += len(document.encode())
        yield document
