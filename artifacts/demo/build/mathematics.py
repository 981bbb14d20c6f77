"""Arithmetic with a short working, in bare expressions and in word problems of one or two steps.

Two-digit operands are taken apart (23 + 58 is 23 + 50, then + 8), because every step is then one of about a
thousand small facts that a few million parameters learn, and unseen pairs of numbers combine them.
"""

from __future__ import annotations

import random
from enum import StrEnum

from artifacts.demo.build.material import table
from artifacts.demo.build.rows import Row, Split
from artifacts.demo.build.wordings import capitalise, decorate, pick, reserved


class Operation(StrEnum):
    """The three operations the model knows."""

    ADD = "add"
    SUBTRACT = "subtract"
    MULTIPLY = "multiply"


def draw(split: Split, rng: random.Random) -> Row:
    """One question; six in ten are bare expressions."""
    return _expression(split, rng) if rng.random() < 0.6 else _story(split, rng)


def working(a: int, operation: Operation, b: int) -> tuple[str, int]:
    """The written steps for one operation, and its result."""
    if operation is Operation.MULTIPLY:
        return _product(a, b)
    sign, direction = ("+", 1) if operation is Operation.ADD else ("-", -1)
    tens, ones = b - b % 10, b % 10
    result = a + direction * b
    if tens == 0 or ones == 0:
        return f"{a} {sign} {b} = {result}", result
    between = a + direction * tens
    return f"{a} {sign} {tens} = {between}, {between} {sign} {ones} = {result}", result


def _product(a: int, b: int) -> tuple[str, int]:
    tens, ones = a - a % 10, a % 10
    if tens == 0 or ones == 0:
        return f"{a} * {b} = {a * b}", a * b
    return f"{tens} * {b} = {tens * b}, {ones} * {b} = {ones * b}, {tens * b} + {ones * b} = {a * b}", a * b


def _answer(steps: list[str], result: int) -> str:
    return f"Compute {', '.join(steps)}. The answer is {result}."


def _operands(operation: Operation, split: Split, rng: random.Random, largest: int = 99) -> tuple[int, int]:
    """Two numbers of the split; products of two digits are in every split, as they cannot be derived."""
    while True:
        if operation is Operation.MULTIPLY:
            a, b = rng.randint(2, 25), rng.randint(2, 9)
            if a < 10:
                return a, b
        else:
            small = rng.random() < 0.3
            a, b = rng.randint(1, 20 if small else 99), rng.randint(1, 9 if small else largest)
        if operation is Operation.SUBTRACT and b >= a:
            continue
        if reserved(operation, a, b) == (split is Split.TEST):
            return a, b


def _expression(split: Split, rng: random.Random) -> Row:
    texts = table("mathematics")
    operation = rng.choices(list(Operation), weights=(4, 3, 2))[0]
    a, b = _operands(operation, split, rng)
    if split is not Split.TEST and rng.random() < 0.12:
        text = rng.choice(texts["commands"][operation])
    else:
        text = pick(texts["frames"], split, rng).replace("{e}", rng.choice(texts["expressions"][operation]))
    prompt = decorate(capitalise(text.format(a=a, b=b)), rng)
    steps, result = working(a, operation, b)
    return Row(prompt, _answer([steps], result))


def _story(split: Split, rng: random.Random) -> Row:
    texts = table("mathematics")
    people = texts["people"]["test" if split is Split.TEST else "train"]
    pronoun = rng.choice(sorted(people))
    name = rng.choice(people[pronoun])
    things = rng.choice(texts["objects"]["test" if split is Split.TEST else "train"])
    if rng.random() < 0.2:
        a, b = _operands(Operation.MULTIPLY, split, rng)
        text = pick(texts["story"]["groups"], split, rng).format(n=name, p=pronoun, o=things, a=a, b=b)
        steps, result = working(a, Operation.MULTIPLY, b)
        return Row(decorate(text, rng), _answer([steps], result))
    written, result = [], 0
    text = ""
    for turn in range(1 if rng.random() < 0.65 else 2):
        operation = rng.choice((Operation.ADD, Operation.SUBTRACT))
        event = pick(texts["story"]["gain" if operation is Operation.ADD else "lose"], split, rng)
        if turn == 0:
            start, b = _operands(operation, split, rng, largest=40)
            text = pick(texts["story"]["open"], split, rng).format(n=name, p=pronoun, o=things, a=start)
            result = start
        else:
            b = rng.randint(1, 9 if operation is Operation.ADD else max(1, min(9, result - 1)))
        event = event.format(n=name, p=pronoun, o=things, b=b)
        join = rng.choice(texts["story"]["join"]["train"]) if turn == 0 else ". Then {e}. "
        if join.startswith(" and") and text.startswith(name) and rng.random() < 0.5:
            event = event.removeprefix(f"{pronoun} ")
        text = text.rstrip(" .") + join.format(e=event, E=capitalise(event))
        steps, result = working(result, operation, b)
        written.append(steps)
    text += pick(texts["story"]["ask"], split, rng).format(n=name, p=pronoun, o=things)
    return Row(decorate(text, rng), _answer(written, result))
