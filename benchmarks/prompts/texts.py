"""Which texts of a set are hard for a guard: many digits and nothing to calculate, programming without code."""

import re
from collections.abc import Sequence

NUMERIC_QUESTION = re.compile(r"\d|\b(how many|how much|how old|how long|how far|what year|which year|percent)", re.I)
CODE = re.compile(
    r"[{};]|==|<-|:=|\b\w+\(|\b(def|int|return|print|for \w+ in)\b|\w\[\w"
    r"|(?i:\bcode (fragment|segment)|\b(program|algorithm|procedure)s? below"
    r"|\bfollowing (program|algorithm|code|procedure)\b|\bStep 1:|\bAlgorithm I\b|\bPython [23]\b|\bPython expression)"
)
NUMERIC_CHOICE = re.compile(r"^\W*\d[\d\W]*([a-z]+ )?[A-Za-z/%]*\.?$")
QUANTITY = re.compile(r"(?<![\d.,-])(?!(1[0-9]|20)\d\d\b)\d|square root", re.I)
"""A number that is no year."""
MIN_DIGITS = 24
MIN_WORDS = 12


def asks_for_a_number(question: str) -> bool:
    """Whether a reading question is about a year, a count or another number, which its paragraph holds."""
    return NUMERIC_QUESTION.search(question) is not None


def has_code(text: str) -> bool:
    """Whether a text shows code or pseudocode, a program in words included, or asks what code of a language does."""
    return CODE.search(text) is not None


def asks_for_a_calculation(question: str, choices: Sequence[str]) -> bool:
    """Whether a multiple-choice question gives a quantity, and every choice is a number: "2,500 of 250,000 died"."""
    return QUANTITY.search(question) is not None and all(map(NUMERIC_CHOICE.match, choices))


def is_paragraph(line: str) -> bool:
    """Whether a line of WikiText is prose: no heading and not a word or two."""
    return not line.lstrip().startswith("=") and len(line.split()) >= MIN_WORDS


def has_many_digits(text: str) -> bool:
    """Whether a paragraph holds many digits: dates, counts, scores."""
    return sum(character.isdigit() for character in text) >= MIN_DIGITS
