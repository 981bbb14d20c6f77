"""Multiple choice: the answer is the letter that the model finds most likely as its first token.

`mmlu` has four choices and shots of the same subject (Hendrycks et al. 2021); `mmlu-text` takes the first letter that
the model writes instead, for models that start their answers with a sentence. `choices` is any file of such rows, as
WMDP's (Li et al. 2024): its label names the skill.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase

from guards.calibration.data_rows import DataRow
from guards.errors import DataError
from server.evaluation.kinds import Grade, Question, Traits, Turn, take

FOUR = "ABCD"
MOST = 20
"""As many choices as a chat tells likely tokens."""
_TURN = Turn("{text}\nAnswer:", "{text}\nAnswer:")
_LETTER = re.compile(rf"(?<![A-Za-z])[{FOUR}](?![A-Za-z'\u2019])")


class Choices:
    """Fields `question`, `choices` (2 to 20 texts) and `answer` (index or letter); shots are of the same `subject`."""

    traits = Traits(skill=None, shots=5, max_tokens=1, fixed_length=True, greedy=True, turn=_TURN)
    told = True
    """Whether the letter is taken from the likelihoods that the server tells, and not from what is written."""

    def question(self, row: DataRow, text_field: str | None) -> Question:
        letters = self.letters(row)
        lines = [f"{letter}. {choice}" for letter, choice in zip(letters, row.values["choices"], strict=True)]
        return Question(
            "\n".join([take(row, text_field or "question", str).strip(), *lines]),
            (self.shown_answer(row),),
            group=str(row.values.get("subject", "")),
            letters=letters if self.told else "",
            chance=1 / len(letters),
        )

    def letters(self, row: DataRow) -> str:
        """One for each choice. Raises DataError."""
        count = len(take(row, "choices", list))
        if not 2 <= count <= MOST:
            raise DataError(f"{row.where}: field 'choices': got {count}, wanted 2 to {MOST}")
        return ascii_uppercase[:count]

    def shown_answer(self, row: DataRow) -> str:
        letters, answer = self.letters(row), row.values.get("answer")
        if isinstance(answer, str) and len(answer) == 1 and answer in letters:
            return answer
        index = take(row, "answer", int)
        if not 0 <= index < len(letters):
            raise DataError(f"{row.where}: field 'answer': got {index}, wanted 0 to {len(letters) - 1}")
        return letters[index]

    def grade(self, gold: Sequence[str], answer: str) -> Grade:
        return Grade(answer == gold[0], answer or None)


class MMLU(Choices):
    """Four choices."""

    traits = Traits(skill="knowledge", shots=5, max_tokens=1, fixed_length=True, greedy=True, turn=_TURN)

    def letters(self, row: DataRow) -> str:
        if (count := len(take(row, "choices", list))) != len(FOUR):
            raise DataError(f"{row.where}: field 'choices': got {count}, wanted {len(FOUR)}")
        return FOUR


class MMLUText(MMLU):
    """The same questions, answered in writing."""

    traits = Traits(skill="knowledge", shots=5, max_tokens=32, greedy=True, turn=_TURN)
    told = False

    def grade(self, gold: Sequence[str], answer: str) -> Grade:
        found = _LETTER.search(answer)
        return Grade(found is not None and found[0] == gold[0], found[0] if found else None)
