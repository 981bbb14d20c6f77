"""What is text, wherever it comes from."""

from collections.abc import Mapping
from typing import Any


def is_encodable(value: Any) -> bool:
    """Whether all text in a JSON value is text in UTF-8, at any depth.

    JSON and command lines can spell half a character (a lone surrogate), which no tokenizer takes.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(value, Mapping):
        return all(is_encodable(each) for pair in value.items() for each in pair)
    return all(map(is_encodable, value)) if isinstance(value, list | tuple) else True
