"""The text of a row: which field holds it, and what of it is one example.

| a row of | gives |
|---|---|
| a text in `prompt`, `question` or `text` | that text |
| Alpaca: `instruction`, with `input` (or `context`) | both as one text, a blank line between |
| a conversation: `messages`, `conversations`, or a list of messages in any field named | the last user's message |
| preferences: `chosen`, a list of messages | the last user's message |

A message is OpenAI's (`role`, `content`, a text or text parts) or ShareGPT's (`from`, `value`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guards.calibration.data_rows import DataRow
from guards.errors import DataError

FIELDS = ("prompt", "question", "text", "instruction", "messages", "conversations", "conversation", "chosen")
"""Names tried, in this order, for the field that holds the text."""
INSTRUCTION, INPUTS = "instruction", ("input", "context")
"""Alpaca's two halves of one text; Dolly calls the second `context`."""
_USERS = ("user", "human", "prompter")
_TEXT_PARTS = ("text", "input_text")


@dataclass(frozen=True)
class TextField:
    """Where the rows of a source have their text. `inputs`: fields whose text belongs to it, in rows that have one."""

    name: str
    inputs: tuple[str, ...] = ()

    def parts(self, row: DataRow) -> dict[str, str]:
        """The row's text by field. Raises DataError where there is none, or no user's message."""
        if self.name not in row.values:
            raise DataError(f"{row.where}: got no field {self.name!r}; found {', '.join(sorted(row.values))}")
        further = [name for name in self.inputs if row.values.get(name) not in (None, "")]
        return {name: _said(row, name) for name in (self.name, *further)}

    def text(self, row: DataRow) -> str:
        """The row's text as one. Raises DataError as `parts` does."""
        return "\n\n".join(text for text in self.parts(row).values() if text.strip())


def pick_field(row: DataRow, wanted: str | None) -> TextField:
    """The field named, else the first of FIELDS, with what belongs to it. Raises DataError."""
    found = ", ".join(sorted(row.values))
    if wanted is not None:
        if wanted not in row.values:
            raise DataError(f"{row.where}: got no field {wanted!r}; found {found}: name one with #FIELD")
        return TextField(wanted)
    for name in FIELDS:
        if name in row.values and (name != "chosen" or isinstance(row.values[name], list)):
            return TextField(name, INPUTS if name == INSTRUCTION else ())
    raise DataError(f"{row.where}: got none of the fields {', '.join(FIELDS)}; found {found}: name one with #FIELD")


def _said(row: DataRow, name: str) -> str:
    value = row.values[name]
    if isinstance(value, list) and value and all(map(_is_message, value)):
        return _last_user(row, name, value)
    if not isinstance(value, str):
        raise DataError(f"{row.where}: field {name!r}: got {type(value).__name__}, wanted text or a list of messages")
    return value


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and bool({"role", "from"} & value.keys())


def _last_user(row: DataRow, name: str, messages: Sequence[Mapping[str, Any]]) -> str:
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if (message.get("role") or message.get("from")) in _USERS:
            content = message.get("content") if message.get("content") is not None else message.get("value")
            return _content(f"{row.where}: {name}[{index}]", content)
    raise DataError(f"{row.where}: field {name!r}: got no message of {' or '.join(_USERS)}; leave the row out")


def _content(where: str, content: Any) -> str:
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
                raise DataError(f"{where}: got a part of type {kind!r}, wanted text")
        return "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise DataError(f"{where}: got {type(content).__name__}, wanted text or a list of text parts")
    return content
