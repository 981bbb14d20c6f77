"""The conversation of a request: messages, calls and their results as items of one list.

Like messages of a chat (`history.py`), items are what clients made of answers of ours: what is not read is dropped.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from server.engines.base import EngineInfo
from server.engines.errors import UnsupportedOptionError
from server.engines.request import Message
from server.openai.body import Listed, NonEmptyText, Text, encodable
from server.openai.history import MAX_MESSAGES, CalledFunction, ChatMessage, HistoryBody, Part, as_parts
from server.openai.invalid import conflict


class CallItem(CalledFunction):
    """One call that an assistant made."""

    bookkeeping = frozenset({"async", "caller", "id", "namespace", "parsed_arguments", "status", "type"})

    call_id: Text | None = None


class ResultItem(HistoryBody):
    """What came of a call."""

    bookkeeping = frozenset({"caller", "id", "name", "namespace", "status", "type"})

    call_id: NonEmptyText
    output: Annotated[Listed[Part], BeforeValidator(as_parts, json_schema_input_type=Text | list[Part])]

    @model_validator(mode="after")
    def _is_no_thought(self) -> Self:
        if any(part.is_reasoning for part in self.output):
            raise conflict("output", "'{field}' cannot have parts of reasoning.")
        return self

    def to_engine(self) -> Message:
        """As chat templates know it."""
        return Message("tool", "\n".join(part.shown for part in self.output), tool_call_id=self.call_id)


class ReasoningItem(HistoryBody):
    """What a model thought. It is not shown to it again."""

    bookkeeping = frozenset({"content", "encrypted_content", "id", "status", "summary", "type"})


_KINDS: dict[str, type[HistoryBody]] = {
    "message": ChatMessage,
    "function_call": CallItem,
    "function_call_output": ResultItem,
    "reasoning": ReasoningItem,
}


def _item(said: Any) -> HistoryBody:
    """By its type. Clients leave that of a message out."""
    if not isinstance(said, dict):
        return ChatMessage.model_validate(said)
    kind = said.get("type")
    if kind is None:
        kind = "message"
    if not isinstance(kind, str) or kind not in _KINDS:
        raise conflict(
            "type",
            f"'{{field}}' should be one of {', '.join(_KINDS)}: only text and functions are supported, and nothing is "
            "stored.",
        )
    return _KINDS[kind].model_validate(said)


def _items(given: object) -> object:
    """A text is what a user says."""
    return [{"role": "user", "content": encodable(given)}] if isinstance(given, str) else given


Item = Annotated[HistoryBody, PlainValidator(_item, json_schema_input_type=dict[str, Any])]
Items = Annotated[
    Listed[Item],
    Field(min_length=1, max_length=MAX_MESSAGES),
    BeforeValidator(_items, json_schema_input_type=str | list[dict[str, Any]]),
]


def conversation(items: Sequence[HistoryBody], instructions: str | None) -> list[Message]:
    """What the chat template is shown. Calls belong to the assistant's message in front of them."""
    said = [Message("system", instructions)] if instructions else []
    for item in items:
        match item:
            case CallItem():
                if not said or said[-1].role != "assistant":
                    said.append(Message("assistant", ""))
                said[-1] = replace(said[-1], tool_calls=(*said[-1].tool_calls, item.to_engine(item.call_id)))
            case ChatMessage() | ResultItem():
                said.append(item.to_engine())
    return said


def require_shown(items: Sequence[HistoryBody], info: EngineInfo) -> None:
    """Raises UnsupportedOptionError naming the first of the items that the engine cannot show to its model."""
    for index, item in enumerate(items):
        if isinstance(item, ChatMessage):
            item.require_honoured(info, f"input[{index}]")
        elif isinstance(item, CallItem | ResultItem) and not info.tool_choices:
            raise UnsupportedOptionError(
                f"The {info.engine} engine does not honour tools, nor their calls and results: 'input[{index}].type'.",
                f"input[{index}].type",
            )
