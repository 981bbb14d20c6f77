"""Reading rows, and reading answers."""

import pytest

from guards.errors import DataError
from server.evaluation.choices import MMLU, Choices, MMLUText
from server.evaluation.gsm8k import GSM8K, read_number, same_number
from server.evaluation.mbpp import MBPP, read_code
from server.evaluation.texts import TOFU, Passages, Prompts, contains
from tests.server.evaluation.samples import row


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("48 / 2 = 24.\nThe answer is 72.", "72"),
        ("#### 1,234", "1234"),
        ("the answer is: $18.50 per day", "18.50"),
        ("The answer is 3 + 5 = 8 apples.", "8"),
        ("The answer is -4.", "-4"),
        ("The answer is 9-4.", "4"),
        ("The answer is 5. Wait. The answer is 6.", "6"),
        ("The answer is 12\n\nQ: 99 more?", "12"),
        ("The answer is .5", ".5"),
        ("The answer is\n7", "7"),
        (r"He has \(\boxed{72}\) clips of 3.", "72"),
        (r"The final answer is:" "\n" r"\[ \boxed{-1,200.5} \]", "-1200.5"),
        (r"The answer is \(\boxed{5}\).", "5"),
        (r"\boxed{4}, no, \boxed{5\text{ km}}", "5"),
        (r"The total is \(\boxed", None),
        ("He has 72 clips.", None),
        ("The answer is unknown.", None),
        ("", None),
    ],
)
def test_the_number_after_the_mark(answer: str, number: str | None) -> None:
    assert read_number(answer) == number


def test_numbers_compare_by_value() -> None:
    assert same_number("18", "18.00")
    assert not same_number("18", "18.01")
    assert GSM8K().grade(("1000",), "The answer is 1,000.0").correct
    assert not GSM8K().grade(("72",), "72").correct


def test_gsm8k_rows() -> None:
    solved = row(question="How many?", answer="She sold 48/2 = <<48/2=24>>24.\n#### 24")
    question = GSM8K().question(solved, None)
    assert (question.text, question.gold) == ("How many?", ("24",))
    assert GSM8K().shown_answer(solved) == "She sold 48/2 = 24.\nThe answer is 24."
    with pytest.raises(DataError, match="no number after"):
        GSM8K().question(row(question="How many?", answer="24"), None)
    with pytest.raises(DataError, match="here:1: got no field 'answer'"):
        GSM8K().question(row(question="How many?"), None)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Here:\n```python\ndef f():\n    return 1\n```\nDone.", "def f():\n    return 1"),
        ("```\nx = 1\n```\n```\nx = 2\n```", "x = 1"),
        ("```py\nx = 1", "x = 1"),
        ("[BEGIN]\nx = 1\n[DONE] more", "x = 1"),
        ("x = 1\n[DONE]\nQ:", "x = 1"),
        ("def f():\n    return 1\n", "def f():\n    return 1"),
    ],
)
def test_code_is_found(answer: str, code: str) -> None:
    assert read_code(answer) == code


TASK = {"task_id": 1, "code": "def twice(x):\r\n    return 2 * x", "test_list": ["assert twice(2) == 4"]}


def test_mbpp_runs_the_tasks_own_tests() -> None:
    question = MBPP().question(row(text="Double.", test_setup_code="N = 2", **TASK), None)
    assert question.text == "Double.\nYour code should pass these tests:\nassert twice(2) == 4"
    sanitised = MBPP().question(row(prompt="Double.", test_imports=["import math"], **TASK), None)
    assert sanitised.gold == ("import math", "assert twice(2) == 4")
    grades = [
        MBPP().grade(question.gold, code)
        for code in (
            "```python\ndef twice(x):\n    return N * x\n```",
            "def twice(x): return x",
            "def twice(x:",
            "import os; os._exit(0)",
            "```python\n```",
        )
    ]
    assert [grade.correct for grade in grades] == [True, False, False, False, False]
    assert [grade.read for grade in grades] == ["passed", "failed", "failed", "failed", None]


def test_mmlu_rows_and_letters() -> None:
    values = {"question": "Which?", "choices": ["w", "x", "y", "z"], "answer": 2, "subject": "logic"}
    question = MMLU().question(row(**values), None)
    assert question.text == "Which?\nA. w\nB. x\nC. y\nD. z"
    assert (question.gold, question.group, question.letters, question.chance) == (("C",), "logic", "ABCD", 0.25)
    written = MMLUText().question(row(**values), None)
    assert (written.text, written.letters, written.chance) == (question.text, "", 0.25)
    for answer, read in (("C", "C"), ("(B) because", "B"), ("A cat", "A"), ("Definitely", None), ("", None)):
        grade = MMLUText().grade(("C",), answer)
        assert (grade.read, grade.correct) == (read, read == "C")
    with pytest.raises(DataError, match="got 3, wanted 4"):
        MMLU().question(row(**{**values, "choices": ["w", "x", "y"]}), None)
    with pytest.raises(DataError, match="got 4, wanted 0 to 3"):
        MMLU().question(row(**{**values, "answer": 4}), None)


def test_choices_are_as_many_as_a_row_has() -> None:
    values = {"question": "Which?", "choices": ["w", "x", "y", "z", "none"], "answer": "E"}
    five = Choices().question(row(**values), None)
    assert five.text.endswith("\nE. none")
    assert (five.gold, five.letters, five.chance) == (("E",), "ABCDE", 0.2)
    two = Choices().question(row(**{**values, "choices": ["w", "x"], "answer": 1}), None)
    assert (two.gold, two.letters, two.chance) == (("B",), "AB", 0.5)
    assert Choices().grade(("B",), "B").correct
    assert Choices().grade(("B",), "").read is None
    with pytest.raises(DataError, match="got 1, wanted 2 to 20"):
        Choices().question(row(**{**values, "choices": ["w"]}), None)
    for answer in ("F", "AB", ""):
        with pytest.raises(DataError, match="field 'answer': got str, wanted int"):
            Choices().question(row(**{**values, "answer": answer}), None)


def test_tofu_is_right_word_by_word() -> None:
    values = {"question": "Where was she born? ", "answer": "She was born in Accra.", "paraphrased_question": "Where?"}
    question = TOFU().question(row(**values), None)
    assert (question.text, question.gold) == ("Where was she born?", ("She was born in Accra.",))
    assert question.references == question.gold
    assert TOFU().question(row(**values), "paraphrased_question").text == "Where?"
    assert TOFU().grade(question.gold, "Well. She was born in  Accra. Yes.").correct
    assert not TOFU().grade(question.gold, "She was born in Lagos.").correct
    with pytest.raises(DataError, match="no field 'answer'"):
        TOFU().question(row(question="Where?"), None)


def test_passages_take_a_gold_substring() -> None:
    squad = {"text": ["München"], "answer_start": [3]}
    question = Passages().question(row(context="In München.", question="Wo?", answers=squad), None)
    assert (question.text, question.gold) == ("In München.\n\nWo?", ("München",))
    assert Passages().grade(("Berlin", "München"), "in MÜNCHEN natürlich").correct
    assert not Passages().grade(("München",), "").correct
    assert contains("量子 力学", "量子　力学")


def test_prompts_match_whole_or_in_part() -> None:
    exact, part = Prompts(), Prompts("answers", "substring")
    assert exact.question(row(prompt="Say hi", answer="hi"), None).gold == ("hi",)
    assert part.question(row(question="Say hi", answers=["hi", "hello"]), None).gold == ("hi", "hello")
    assert exact.grade(("a\n  b",), "a  \n  b\n").correct
    assert not exact.grade(("a\n  b",), "a\nb").correct
    assert not exact.grade(("hi",), "oh, hi").correct
    assert part.grade(("hi",), "oh, HI").correct
    with pytest.raises(DataError, match="field 'answer'"):
        exact.question(row(prompt="Say hi", answer=""), None)
    with pytest.raises(DataError, match="name one with #FIELD"):
        exact.question(row(said="Say hi", answer="hi"), None)
