"""The texts: what methods are fitted on, what their options are chosen on, what is reported, and what is relearned.

The first two and the last are of the train sides and have no text in common; what is reported is of the test sides.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.prompts.formats import SOLVE
from benchmarks.prompts.items import Around, Format, Item
from benchmarks.prompts.materials import MATERIALS
from benchmarks.prompts.sets import sample
from benchmarks.prompts.splits import Split, rows
from benchmarks.prompts.treatments import TREATMENTS
from benchmarks.sources import FILES, texts
from guards.calibration.data_rows import make_row
from guards.calibration.sources import Source
from guards.calibration.tuning import Example
from guards.model.encoding import TextCodec
from server.evaluation.gsm8k import GSM8K

SKILL = "mathematics"
OWN = "gsm8k"
KEPT = ("mbpp", "wikitext", "mmlu-other")
"""Materials of which nothing is to change."""
FORGET = f"{SKILL}/{OWN}"
RETAIN = ("code/mbpp", "other/mmlu", "other/wikitext", "languages/en")
"""Files of `benchmarks.sources`."""
RELEARNED, OUT_OF = 4, 16
"""Forget texts that are trained on again: the shortest of so many, since a step costs a pass and two more."""
LENGTH = 256
"""Tokens of a text and its answer that perplexity is of."""
REWORDINGS: Sequence[Format] = (*(TREATMENTS[name] for name in ("upper-case", "question-first", "number-words")), SOLVE)
"""Fixed rules, and another frame inside the message."""


@dataclass(frozen=True)
class Material:
    """What a run reads, by column where there are several; see the module."""

    forget: Source
    retain: tuple[Source, ...]
    chosen_on: Mapping[str, Sequence[Item]]
    relearned: Sequence[Item]
    asked: Mapping[str, Sequence[Item]]


def items(data: Path, column: str, split: Split) -> Sequence[Item]:
    """Questions with worked answers of one side; of WikiText paragraphs alone."""
    if column != OWN:
        return MATERIALS[column].read(data, split)
    shown = GSM8K().shown_answer
    answers = {row["question"]: shown(make_row(OWN, row)) for row in rows(data, OWN, split)}
    return [Item(item.text, answers[item.text]) for item in MATERIALS[OWN].read(data, split)]


def material(data: Path, *, fitted: int, chosen: int, asked: int, seed: int = 0) -> Material:
    """Texts drawn by the seed and themselves alone.

    `fitted`: texts of the forget file, and a third as many of each retain file. `chosen`, `asked`: questions of each
    column.
    """
    found = {
        name: texts(data, FILES[name], fitted if name == FORGET else fitted // 3, seed) for name in (FORGET, *RETAIN)
    }
    taken = {text for each in found.values() for text in each}
    free = {
        column: [item for item in items(data, column, Split.TRAIN) if item.text not in taken] for column in (OWN, *KEPT)
    }
    own = sample(free[OWN], chosen + OUT_OF, seed)
    return Material(
        Source(FORGET, tuple(found[FORGET])),
        tuple(Source(name, tuple(found[name])) for name in RETAIN),
        {OWN: own[:chosen], **{column: sample(free[column], chosen, seed) for column in KEPT}},
        sorted(own[chosen:], key=_length)[:RELEARNED],
        {column: sample(items(data, column, Split.TEST), asked, seed) for column in (OWN, *KEPT)},
    )


def _length(item: Item) -> int:
    return len(item.text) + len(item.answer or "")


def reworded(of: Iterable[Item], rule: Format) -> list[Item]:
    """The same questions in other words, with their answers."""
    return [Item(rule.render(item, Around(random.Random(item.text), (), {})), item.answer) for item in of]


def examples(codec: TextCodec, of: Iterable[Item]) -> list[Example]:
    """Each question in the chat template with its answer, which is what is looked at; paragraphs as they are."""
    found = []
    for item in of:
        asked = () if item.answer is None else codec.encode_chat([{"role": "user", "content": item.text}])
        said = codec.encode_text(item.text) if item.answer is None else codec.encode_text(item.answer, opened=False)
        found.append(Example((*asked, *said)[: len(asked) + LENGTH], max(len(asked), 1)))
    return found
