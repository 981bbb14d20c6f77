"""Tools: which there are, how they may be called, and how calls are told from an answer's text.

A parser reads text that the guards already let through, and adds nothing to it except ids, and a function's name where
the request itself fixed that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True)
class Tool:
    """A function that a model may call. `strict`: its arguments must match `parameters`, a JSON schema."""

    name: str
    description: str | None = None
    parameters: Mapping[str, object] | None = None
    strict: bool = False


class ToolChoice(StrEnum):
    """Who decides whether an answer calls a tool."""

    AUTO = "auto"
    """The model."""
    REQUIRED = "required"
    """The request: at least one."""
    NAMED = "named"
    """The request: this one."""


@dataclass(frozen=True)
class ToolUse:
    """What a request says of its tools. `name` goes with NAMED and is one of theirs."""

    tools: tuple[Tool, ...]
    choice: ToolChoice = ToolChoice.AUTO
    name: str | None = None
    parallel: bool = True
    """Whether one answer may call several times."""


@dataclass(frozen=True)
class ToolCall:
    """One call. `arguments` is text as the model wrote it: JSON, unless the answer was cut short."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ToolCallPiece:
    """More of the index-th call of an answer. `id` and `name` come with its first piece and never again."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Parsed:
    """A whole answer, taken apart."""

    content: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class ParsedPiece:
    """What more of an answer's text came to; empty while it may become either."""

    content: str = ""
    calls: tuple[ToolCallPiece, ...] = ()


class ToolCallParser(Protocol):
    """Reads one answer, by `whole` or by `push`. Never raises: what it cannot read is content."""

    def whole(self, text: str) -> Parsed:
        """All of the answer."""
        ...

    def push(self, text: str, token_ids: tuple[int, ...], *, final: bool) -> ParsedPiece:
        """The next of the answer. With `final`, all that was held back comes out."""
        ...


class PlainText:
    """The ToolCallParser of answers that call nothing."""

    def whole(self, text: str) -> Parsed:
        return Parsed(text)

    def push(self, text: str, token_ids: tuple[int, ...], *, final: bool) -> ParsedPiece:
        return ParsedPiece(text)
