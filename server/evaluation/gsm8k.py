"""GSM8K: word problems, judged by the number after "The answer is" (or "####"), or in the last \\boxed{}.

Source: Cobbe et al. 2021. Shots are shown with their worked solutions, as in Wei et al. 2022 and ESU.
"""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from guards.calibration.data_rows import DataRow
from guards.errors import DataError
from server.evaluation.kinds import Grade, Question, Traits, take

_MARK = re.compile(r"the answer is|####|\\boxed(?=\{)", re.IGNORECASE)
_BOX = re.compile(r"\{([^{}]*)\}")
_NUMBER = re.compile(r"(?:(?<![\d)])-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_WORKING = re.compile(r"<<.*?>>")


def read_number(answer: str) -> str | None:
    """The last number on the line of the last mark, or in the last box, as digits; None without mark or number.

    A number elsewhere does not count: an answer that was cut off has not been given.
    """
    marks = list(_MARK.finditer(answer))
    if not marks:
        return None
    line = answer[marks[-1].end() :].lstrip(" :\t\n").split("\n")[0]
    box = _BOX.match(line) if marks[-1][0].endswith("boxed") else None
    found = _NUMBER.findall(box[1] if box else line)
    return found[-1].replace(",", "").replace("$", "") if found else None


def same_number(first: str, second: str) -> bool:
    """Whether two spellings are one number: 18 and 18.00 are."""
    try:
        return Decimal(first) == Decimal(second)
    except InvalidOperation:
        return False


class GSM8K:
    """Fields `question` and `answer`, whose last line is `#### n`."""

    traits = Traits(skill="mathematics", shots=8, max_tokens=256)

    def question(self, row: DataRow, text_field: str | None) -> Question:
        gold = read_number(take(row, "answer", str))
        if gold is None:
            raise DataError(f"{row.where}: field 'answer': got no number after '####'")
        return Question(take(row, text_field or "question", str), (gold,), (self.shown_answer(row),))

    def shown_answer(self, row: DataRow) -> str:
        """The solution without the calculator's notes, ending in the sentence that is looked for."""
        solution, _, number = take(row, "answer", str).rpartition("####")
        return f"{_WORKING.sub('', solution).strip()}\nThe answer is {number.strip()}."

    def grade(self, gold: Sequence[str], answer: str) -> Grade:
        read = read_number(answer)
        return Grade(read is not None and same_number(read, gold[0]), read)
