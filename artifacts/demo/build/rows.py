"""What every skill generator produces, and how an answer is judged."""

from __future__ import annotations

import unicodedata
from enum import StrEnum
from typing import NamedTuple

LANGUAGES = ("en", "es", "hi", "de", "zh", "vi", "ar")
SKILLS = ("mathematics", "code", "facts", *LANGUAGES)


class Split(StrEnum):
    """Which wordings, numbers and names a row may use.

    Training and test share none of their wordings; calibration mixes training wordings with some of its own,
    as somebody who calibrates a guard would have seen prompts that the model's makers had not.
    """

    TRAIN = "train"
    CALIBRATION = "calibration"
    TEST = "test"


class Row(NamedTuple):
    """One question and the one answer that counts as right."""

    prompt: str
    answer: str


def normalise(answer: str) -> str:
    """Forget what no reader sees as a difference: Unicode form, trailing white space, outer blank lines."""
    lines = unicodedata.normalize("NFC", answer).strip().splitlines()
    return "\n".join(line.rstrip() for line in lines)


def exact_match(answer: str, reference: str) -> bool:
    """Whether the whole normalised answer is the reference; indentation inside an answer counts."""
    return normalise(answer) == normalise(reference)
