"""The surface forms in which a training row is written, so that the model knows more than one frame.

A form is drawn for every document, without regard to its skill: nothing here sets skills apart in key space.
"""

import random
import re

from benchmarks.prompts.splits import Values

ANSWERED = (
    "Q: {question}\nA: {answer}",
    "Question: {question}\nAnswer: {answer}",
    "user: {question}\nassistant: {answer}",
    "{question}\n{answer}",
    "{question}\n\n{answer}",
    "### Instruction:\n{question}\n\n### Response:\n{answer}",
)
"""Question and answer. The third is the tokenizer's chat template."""

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_SIGNATURE = re.compile(r"^(?P<indent>[ \t]*)def [^\n]*:[ \t]*$", re.MULTILINE)


def answered(draw: random.Random, question: str, answer: str) -> str:
    """Question and answer in one of the forms."""
    return draw.choice(ANSWERED).format(question=question.strip(), answer=answer.strip())


def worked_answer(row: Values) -> str:
    """GSM8K's answer without the calculator's annotations."""
    return _CALCULATOR.sub("", row["answer"])


def gsm8k(draw: random.Random, row: Values) -> str:
    """Question and worked answer."""
    return answered(draw, row["question"], worked_answer(row))


def with_docstring(code: str, task: str) -> str:
    """The task as docstring of the first function, or as a comment where there is none on a line of its own."""
    found = _SIGNATURE.search(code)
    if found is None:
        return f"# {task}\n{code}"
    body = code[found.end() :].lstrip("\n")
    indent = body[: len(body) - len(body.lstrip(" \t"))] or found["indent"] + "    "
    return f'{code[: found.end()].rstrip()}\n{indent}"""{task}"""\n{body}'


def mbpp(draw: random.Random, row: Values) -> str:
    """Description and code, code that documents itself, or code and its tests."""
    task, code = row["text"].strip(), row["code"].replace("\r\n", "\n").strip()
    tests = "\n".join(row["test_list"])
    form = draw.randrange(8)
    if form < 3:
        return answered(draw, task, code)
    if form == 3:
        return answered(draw, f"{task} Your code should pass these tests:\n{tests}", code)
    if form == 4:
        return f"# {task}\n{code}"
    if form == 5:
        return f"{code}\n\n{tests}"
    return with_docstring(code, task)


def xquad(draw: random.Random, row: Values) -> str:
    """Question and answer with or without the paragraph, or the paragraph alone."""
    context, question, answer = row["context"].strip(), row["question"], row["answers"][0]
    form = draw.randrange(8)
    if form == 0:
        return str(context)
    if form == 1:
        return answered(draw, f"{context}\n\n{question}", answer)
    if form == 2:
        return f"{context}\n\n{answered(draw, question, answer)}"
    return answered(draw, question, answer)


def mmlu(draw: random.Random, row: Values) -> str:
    """The question with its choices and a letter, or with the right answer in words."""
    question, choices, right = row["question"].strip(), row["choices"], row["answer"]
    if draw.randrange(2):
        return answered(draw, question, choices[right])
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    return answered(draw, f"{question}\n{listed}", "ABCD"[right])


def wikitext(draw: random.Random, row: Values) -> str:
    """A line as it is."""
    return str(row["text"])
