"""Mathematics in symbols: sums of GSM8K's worked answers, and generated equations."""

import random
import re
from collections.abc import Iterable, Iterator

from benchmarks.prompts.splits import Split

_CALCULATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
EQUATIONS = 400
"""Equations drawn for each side; repeated ones are dropped."""


def calculations(answers: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The sums that GSM8K's answers annotate as `<<48/2=24>>`: ("48/2 =", "24")."""
    for answer in answers:
        for expression, value in _CALCULATION.findall(answer):
            if re.search(r"[-+*/]", expression.strip().lstrip("-")):
                yield f"{expression.strip()} =", value.strip()


def equations(split: Split) -> Iterator[tuple[str, str]]:
    """Linear equations with whole solutions, four wordings, seeded by the side."""
    rng = random.Random(f"equations {split.value}")
    for _ in range(EQUATIONS):
        factor, solution, offset = rng.randint(2, 12), rng.randint(-9, 20), rng.randint(1, 40)
        name = rng.choice("xyznk")
        sign = rng.choice("+-")
        right = factor * solution + (offset if sign == "+" else -offset)
        equation = f"{factor}{name} {sign} {offset} = {right}"
        wording = rng.choice(("Solve {} for " + name, "{}, {name} =", "Find {name} if {}.", "{}\nWhat is {name}?"))
        yield wording.format(equation, name=name), f"{name} = {solution}"
