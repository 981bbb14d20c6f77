"""A row of a data source, with the place it came from for error messages."""

from dataclasses import dataclass
from typing import Any

from guards.core.text import is_encodable
from guards.errors import DataError

TEXT_FIELD = "text"
"""The field under which a `.txt` line, or a bare string in JSON, is kept."""


@dataclass(frozen=True)
class DataRow:
    """One row: its values by field, and its place, "file:line"."""

    where: str
    values: dict[str, Any]


def make_row(where: str, value: Any) -> DataRow:
    """A row of an object, or of a bare string.

    Raises DataError for anything else, and for half a character (a lone surrogate), which JSON can spell and no
    tokenizer takes: the API refuses it too.
    """
    values = {TEXT_FIELD: value} if isinstance(value, str) else value
    if not isinstance(values, dict):
        raise DataError(f"{where}: got a {type(value).__name__}, wanted an object or a string")
    for field, held in values.items():
        if not is_encodable(field) or not is_encodable(held):
            raise DataError(
                f"{where}: field {field!a}: got half a character (a lone surrogate such as \\ud83d), wanted text: "
                "mend the row, or cut texts by characters when you write them"
            )
    return DataRow(where, values)
