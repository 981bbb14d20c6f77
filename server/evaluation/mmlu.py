"""MMLU: four choices. The answer is the letter that the model finds most likely as its first token.

Source: Hendrycks et al. 2021. `mmlu-text` takes the first letter that the model writes instead, for models that start
their answers with a sentence.
"""

import re
from collections.abc import Sequence

from guards.calibration.data_rows import DataRow
from guards.errors import DataError
from server.evaluation.kinds import Grade, Question, Traits, Turn, take

LETTERS = "ABCD"
_TURN = Turn("{text}\nAnswer:", "{text}\nAnswer:")
_LETTER = re.compile(rf"(?<![A-Za-z])[{LETTERS}](?![A-Za-z'\u2019])")


class MMLU:
    """Fields `question`, `choices` (four texts), `answer` (index) and `subject`; shots are of the same subject."""

    traits = Traits(
        skill="knowledge",
        shots=5,
        max_tokens=1,
        chance=0.25,
        letters=LETTERS,
        fixed_length=True,
        greedy=True,
        turn=_TURN,
    )

    def question(self, row: DataRow, text_field: str | None) -> Question:
        choices = take(row, "choices", list)
        if len(choices) != len(LETTERS):
            raise DataError(f"{row.where}: field 'choices': got {len(choices)}, wanted {len(LETTERS)}")
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
        text = "\n".join([take(row, text_field or "question", str).strip(), *lines])
        return Question(text, (self.shown_answer(row),), group=str(row.values.get("subject", "")))

    def shown_answer(self, row: DataRow) -> str:
        index = take(row, "answer", int)
        if not 0 <= index < len(LETTERS):
            raise DataError(f"{row.where}: field 'answer': got {index}, wanted 0 to {len(LETTERS) - 1}")
        return LETTERS[index]

    def grade(self, gold: Sequence[str], answer: str) -> Grade:
        found = _LETTER.search(answer)
        return Grade(found is not None and found[0] == gold[0], found[0] if found else None)


class MMLUText(MMLU):
    """The same questions, answered in writing."""

    traits = Traits(skill="knowledge", shots=5, max_tokens=32, chance=0.25, greedy=True, turn=_TURN)
