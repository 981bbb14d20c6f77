"""Which texts of a set are hard for a guard: many digits and nothing to calculate, programming without code."""

import re

NUMERIC_QUESTION = re.compile(r"\d|\b(how many|how much|how old|how long|how far|what year|which year|percent)", re.I)
CODE = re.compile(
    r"[{};]|==|<-|:=|\b\w+\(|\b(def|int|return|print|for \w+ in)\b|\w\[\w"
    r"|(?i:\bcode (fragment|segment)|\b(program|algorithm|procedure)s? below"
    r"|\bfollowing (program|algorithm|code|procedure)\b|\bStep 1:|\bAlgorithm I\b|\bPython [23]\b|\bPython expression)"
)
MIN_DIGITS = 24
MIN_WORDS = 12


def asks_for_a_number(question: str) -> bool:
    """Whether a reading question is about a year, a count or another number, which its paragraph holds."""
    return NUMERIC_QUESTION.search(question) is not None


def has_code(text: str) -> bool:
    """Whether a text shows code or pseudocode, a program in words included, or asks what code of a language does."""
    return CODE.search(text) is not None


def is_paragraph(line: str) -> bool:
    """Whether a line of WikiText is prose: no heading and not a word or two."""
    return not line.lstrip().startswith("=") and len(line.split()) >= MIN_WORDS


def has_many_digits(text: str) -> bool:
    """Whether a paragraph holds many digits: dates, counts, scores."""
    return sum(character.isdigit() for character in text) >= MIN_DIGITS
