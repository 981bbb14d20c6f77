"""What a kind of suite is: how its rows become questions, and how an answer is judged. `suites.py` has the registry."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from guards.calibration.data_rows import DataRow
from guards.errors import DataError


@dataclass(frozen=True)
class Question:
    """One row, before a frame surrounds it."""

    text: str
    gold: tuple[str, ...]
    """Answers that count as right; for code, the lines that test it."""
    references: tuple[str, ...] = ()
    """Texts that ROUGE compares the answer with; none where answers are no texts."""
    group: str = ""
    """Shots are taken from the same group, such as a subject."""
    letters: str = ""
    """Where not empty, the answer is the most likely of these letters as the first token."""
    chance: float = 0.0
    """Of guessing right, for S-unlearning."""


@dataclass(frozen=True)
class Grade:
    """Whether an answer is right, and what was read from it (None: nothing could be)."""

    correct: bool | None
    """None of suites whose answers are scored: they are neither right nor wrong."""
    read: str | None


@dataclass(frozen=True)
class Turn:
    """How a question is written where the frame is no template: `{text}` stands for it."""

    zero_shot: str = "{text}"
    with_shots: str = "Q: {text}\nA:"


@dataclass(frozen=True)
class Traits:
    """What a kind fixes about all of its items."""

    skill: str | None
    """The skill it measures; None where the suite's label names it."""
    shots: int
    """Solved examples shown where --shots names a source."""
    max_tokens: int
    fixed_length: bool = False
    """Whether the length of an answer belongs to the benchmark, so that --max-tokens does not change it."""
    greedy: bool = False
    """Whether the benchmark is asked greedily whatever --temperature says, as in ESU."""
    blocking: bool = False
    """Whether judging takes so long that it needs a thread."""
    toxicity: bool = False
    """Whether answers are scored once all are there (`scoring.py`), --samples of them to each prompt."""
    turn: Turn = field(default_factory=Turn)


class Kind(Protocol):
    """One kind of suite."""

    @property
    def traits(self) -> Traits:
        """What all items share."""
        ...

    def question(self, row: DataRow, text_field: str | None) -> Question:
        """Raises DataError naming the row and the field that is missing or wrong. `text_field`: as the source says."""
        ...

    def shown_answer(self, row: DataRow) -> str:
        """The answer as a solved example shows it."""
        ...

    def grade(self, gold: Sequence[str], answer: str) -> Grade:
        """Judges an answer that was not withheld."""
        ...


def take(row: DataRow, name: str, kind: type[Any]) -> Any:
    """A field of a row. Raises DataError."""
    if name not in row.values:
        raise DataError(f"{row.where}: got no field {name!r}; found {', '.join(sorted(row.values))}")
    value = row.values[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{row.where}: field {name!r}: got {type(value).__name__}, wanted {kind.__name__}")
    return value


def take_texts(row: DataRow, name: str) -> tuple[str, ...]:
    """A field that holds a text or a list of texts, of which none is blank. Raises DataError."""
    value = row.values.get(name)
    if isinstance(value, dict):  # SQuAD's own form: {"text": [...], "answer_start": [...]}
        value = value.get("text")
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else ()
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        found = ", ".join(sorted(row.values))
        raise DataError(f"{row.where}: got no text or list of texts in field {name!r}; found {found}")
    return texts
