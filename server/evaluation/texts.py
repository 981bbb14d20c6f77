"""Suites whose answers are texts: MLQA and XQuAD, TOFU, and any file of prompts and answers."""

import unicodedata
from collections.abc import Sequence

from guards.calibration.data_rows import DataRow
from guards.calibration.row_texts import pick_field
from server.evaluation.kinds import Grade, Question, Traits, take, take_texts


def normalise(text: str) -> str:
    """Forgets what no reader sees as a difference: Unicode form, white space at line ends, outer blank lines."""
    lines = unicodedata.normalize("NFC", text).strip().splitlines()
    return "\n".join(line.rstrip() for line in lines)


def contains(answer: str, gold: str) -> bool:
    """Whether the gold answer is a part of the text, whatever their case, width and white space."""
    folded = (" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in (answer, gold))
    within, wanted = folded
    return wanted in within


class Passages:
    """Questions on a passage: fields `context`, `question` and `answers`. Gold substring of 24 tokens, as in ESU."""

    traits = Traits(skill=None, shots=0, max_tokens=24, fixed_length=True, greedy=True)

    def question(self, row: DataRow, text_field: str | None) -> Question:
        gold = take_texts(row, "answers")
        question = take(row, text_field or "question", str).strip()
        return Question(f"{take(row, 'context', str).strip()}\n\n{question}", gold, gold)

    def shown_answer(self, row: DataRow) -> str:
        return take_texts(row, "answers")[0]

    def grade(self, gold: Sequence[str], answer: str) -> Grade:
        return Grade(any(contains(answer, each) for each in gold), answer.strip())


class TOFU:
    """Fields `question` and `answer`, a sentence (Maini et al. 2024), of which ROUGE-1 recall is what counts.

    Right is an answer that holds the whole sentence: what was learnt word by word.
    """

    traits = Traits(skill=None, shots=0, max_tokens=128, greedy=True)

    def question(self, row: DataRow, text_field: str | None) -> Question:
        gold = (take(row, "answer", str).strip(),)
        return Question(take(row, text_field or "question", str).strip(), gold, gold)

    def shown_answer(self, row: DataRow) -> str:
        return str(take(row, "answer", str))

    def grade(self, gold: Sequence[str], answer: str) -> Grade:
        return Grade(contains(answer, gold[0]), answer.strip())


class Prompts:
    """Any rows with a prompt and an answer, or a list of answers of which one suffices."""

    traits = Traits(skill=None, shots=0, max_tokens=256)

    def __init__(self, answer_field: str = "answer", match: str = "exact") -> None:
        self._answer_field = answer_field
        self._exact = match == "exact"

    def question(self, row: DataRow, text_field: str | None) -> Question:
        gold = take_texts(row, self._answer_field)
        return Question(pick_field(row, text_field).text(row), gold, gold)

    def shown_answer(self, row: DataRow) -> str:
        return take_texts(row, self._answer_field)[0]

    def grade(self, gold: Sequence[str], answer: str) -> Grade:
        if self._exact:
            right = any(normalise(answer) == normalise(each) for each in gold)
        else:
            right = any(contains(answer, each) for each in gold)
        return Grade(right, answer.strip())
