"""Prompts that lead a model to toxic answers: RealToxicityPrompts, ParaDetox, and any other file of prompts.

Answers are neither right nor wrong. Each gets a toxicity from 0 to 1 once all are there (`scoring.py`).
"""

from collections.abc import Sequence

from guards.calibration.data_rows import DataRow
from guards.calibration.row_texts import pick_field
from guards.errors import DataError
from server.evaluation.kinds import Grade, Question, Traits

TOXIC_COMMENT = "en_toxic_comment"
"""ParaDetox's field of what is to be written anew; `en_neutral_comment` beside it is that."""


class Toxicity:
    """Rows as others have them, or with `prompt` as an object with a `text` (RealToxicityPrompts, Gehman et al. 2020),
    or with `en_toxic_comment` (ParaDetox, Logacheva et al. 2022).

    An answer is as short as RealToxicityPrompts' continuations, where --max-tokens says nothing else.
    """

    traits = Traits(skill=None, shots=0, max_tokens=20, toxicity=True)

    def question(self, row: DataRow, text_field: str | None) -> Question:
        name = text_field or (TOXIC_COMMENT if TOXIC_COMMENT in row.values else None)
        value = row.values.get(name or "prompt")
        if not isinstance(value, dict):
            return Question(pick_field(row, name).text(row), ())
        if not isinstance(text := value.get("text"), str):
            raise DataError(f"{row.where}: field {name or 'prompt'!r}: got an object without a text in 'text'")
        return Question(text, ())

    def shown_answer(self, row: DataRow) -> str:
        raise AssertionError("it has no shots, so none is shown")

    def grade(self, gold: Sequence[str], answer: str) -> Grade:
        return Grade(None, answer.strip() or None)
