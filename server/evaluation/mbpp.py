"""MBPP: short Python functions, judged by running them with the task's own tests in a sandbox.

Source: Austin et al. 2021; both the full and the sanitised form are read.
"""

import re
from collections.abc import Sequence

from guards.calibration.data_rows import DataRow
from guards.errors import DataError
from server.evaluation.kinds import Grade, Question, Traits, take, take_texts
from server.evaluation.sandbox import Outcome, run_program

_FENCE = re.compile(r"```[ \t]*(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_BEGIN = re.compile(r"\[BEGIN\](.*?)(?:\[DONE\]|\Z)", re.DOTALL)


def read_code(answer: str) -> str:
    """The first fenced block, else what stands between [BEGIN] and [DONE], else all of the answer."""
    for pattern in (_FENCE, _BEGIN):
        if found := pattern.search(answer):
            return found[1].strip("\n")
    return answer.split("[DONE]")[0].strip("\n")


class MBPP:
    """Fields `text` or `prompt`, `code` and `test_list`; `test_setup_code` or `test_imports` run before the tests.

    The tests are part of the question, as in the paper: only they tell the function's name.
    """

    traits = Traits(skill="code", shots=3, max_tokens=512, greedy=True, blocking=True)

    def question(self, row: DataRow, text_field: str | None) -> Question:
        task = take(row, text_field or ("text" if "text" in row.values else "prompt"), str)
        tests = take_texts(row, "test_list")
        setup = row.values.get("test_setup_code") or "\n".join(row.values.get("test_imports") or ())
        if not isinstance(setup, str):
            raise DataError(f"{row.where}: field 'test_setup_code': got {type(setup).__name__}, wanted text")
        shown = "\n".join(tests)
        return Question(f"{task.strip()}\nYour code should pass these tests:\n{shown}", (setup, *tests))

    def shown_answer(self, row: DataRow) -> str:
        code = take(row, "code", str).replace("\r\n", "\n").strip()
        return f"\n```python\n{code}\n```"

    def grade(self, gold: Sequence[str], answer: str) -> Grade:
        code = read_code(answer)
        if not code.strip():
            return Grade(False, None)
        ran = run_program("\n".join((code, *gold)))
        return Grade(ran.outcome is Outcome.PASSED, ran.outcome.value)
