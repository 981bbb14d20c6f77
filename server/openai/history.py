"""The conversation in a request: messages, their parts, calls and results.

Clients send our own answers back, with whatever their SDK keeps in a message. Here, and nowhere else in a request, a
key that is not read is dropped. `to_engine` makes what the chat template is shown of the fields that are read and of
nothing else, so that nothing dropped is rendered, and all that is rendered is judged. `tables.py` makes the
documentation's table of it.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, ModelWrapValidatorHandler, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from server.engines.base import EngineInfo
from server.engines.errors import UnsupportedOptionError
from server.engines.request import Message
from server.engines.tools import ToolCall
from server.openai.body import Body, Listed, NonEmptyText, Text, encodable
from server.openai.invalid import conflict
from server.openai.structure import object_text
from server.openai.unsupported import IN_MESSAGE, Neutral

logger = logging.getLogger("skillguard.server")

_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("thinking", "redacted_thinking", "reasoning")
_PART_TYPES = (*_TEXT_PARTS, "refusal", *_REASONING_PARTS)
_UNREADABLE = "arguments"
"""The key under which a template finds arguments that are no JSON object."""


class HistoryBody(Body):
    """An object in a conversation. `bookkeeping` names keys that SDKs are known to leave in it."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})

    bookkeeping: ClassVar[frozenset[str]] = frozenset()

    _dropped: Counter[str] = PrivateAttr(default_factory=Counter)

    @classmethod
    def reads(cls, said: Mapping[str, object]) -> frozenset[str]:
        """The keys of this object that are read."""
        return cls.field_names()

    @model_validator(mode="wrap")
    @classmethod
    def _drop_what_is_not_read(cls, said: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(said, dict):
            return build(said)
        looked_at = cls.reads(said) | cls.not_honoured.keys()
        built = build({key: value for key, value in said.items() if key in looked_at})
        built._dropped.update(key if key in cls.bookkeeping else "other" for key in said if key not in looked_at)
        return built

    def dropped(self) -> Counter[str]:
        """How often each known key was dropped here and further in; all others count as "other"."""
        counted = self._dropped.copy()
        for inner in self._inner():
            counted += inner.dropped()
        return counted

    def _inner(self) -> Iterator["HistoryBody"]:
        for name in type(self).model_fields:
            held = getattr(self, name)
            yield from (each for each in (held if isinstance(held, list) else [held]) if isinstance(each, HistoryBody))


def _part_type(kind: object) -> object:
    if kind not in _PART_TYPES:
        raise PydanticCustomError(
            "content_part", f"it should be one of {', '.join(_PART_TYPES)}, since only text is supported"
        )
    return kind


class Part(HistoryBody):
    """One part of a message's content. What a model thought is not shown to it again."""

    bookkeeping = frozenset({"annotations", "cache_control", "citations", "id", "logprobs", "signature", "thinking"})

    type: Annotated[str, BeforeValidator(_part_type, json_schema_input_type=Literal[_PART_TYPES])]
    text: Text | None = None
    refusal: Text | None = None

    @classmethod
    def reads(cls, said: Mapping[str, object]) -> frozenset[str]:
        kind = said.get("type")
        return frozenset({"type"} if kind in _REASONING_PARTS else {"type", "refusal" if kind == "refusal" else "text"})

    @model_validator(mode="after")
    def _has_its_text(self) -> Self:
        field = "refusal" if self.type == "refusal" else "text"
        if not self.is_reasoning and getattr(self, field) is None:
            raise conflict(field, "A part of this type needs '{field}', a string.")
        return self

    @property
    def is_reasoning(self) -> bool:
        """Whether it is not part of the message's text."""
        return self.type in _REASONING_PARTS

    @property
    def shown(self) -> str:
        """Its text."""
        return (self.refusal if self.type == "refusal" else self.text) or ""


def as_parts(content: object) -> object:
    """A text as its only part."""
    if isinstance(content, str):
        return [{"type": "text", "text": encodable(content)}]
    if content is not None and not isinstance(content, list):
        raise PydanticCustomError("content", "it should be a string or a list of text parts")
    return content


def _arguments(arguments: object) -> str:
    """JSON as text, of an object, since templates look into it.

    Our own answers may hold other text: the model's, cut short or never JSON. It stays whole, in an object of one key.
    """
    text = arguments if isinstance(arguments, str) else "" if arguments is None else _dumped(arguments)
    text = encodable(text) or "{}"
    try:
        object_text(json.loads(text))
    except (ValueError, RecursionError):
        return json.dumps({_UNREADABLE: text}, ensure_ascii=False)
    return text


def _dumped(arguments: object) -> str:
    """Some clients send them parsed."""
    try:
        return json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        raise PydanticCustomError("arguments", "it should be an object, or JSON as text") from None


def _call_id(name: str) -> str:
    """For calls without one: OpenAI's older form tells results by the function's name. Mistral takes nine letters."""
    return hashlib.sha256(name.encode()).hexdigest()[:9]


class CalledFunction(HistoryBody):
    """What was called, with what. The name is as a model wrote it, and may be none of the tools'."""

    bookkeeping = frozenset({"parsed", "parsed_arguments", "provider_specific_fields", "strict"})

    name: Text
    arguments: Annotated[str, BeforeValidator(_arguments, json_schema_input_type=Any)] = "{}"

    def to_engine(self, call_id: str | None = None) -> ToolCall:
        """Without an id the call gets one made of its name."""
        return ToolCall(call_id or _call_id(self.name), self.name, self.arguments)


class CallBody(HistoryBody):
    """One call that an assistant made."""

    bookkeeping = frozenset({"cache_control", "caller", "extra_content", "index", "provider_specific_fields"})

    id: Text | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


class ChatMessage(HistoryBody):
    """One message. An assistant's may be empty, refuse, or call."""

    not_honoured: ClassVar[Neutral] = IN_MESSAGE
    bookkeeping = frozenset(
        {
            "annotations", "cache_control", "extra_content", "id", "name", "parsed", "provider_specific_fields",
            "reasoning", "reasoning_content", "reasoning_details", "status", "thinking_blocks", "type",
        }
    )  # fmt: skip

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        Listed[Part] | None, BeforeValidator(as_parts, json_schema_input_type=Text | list[Part] | None)
    ] = None
    refusal: Text | None = None
    tool_calls: Listed[CallBody] | None = None
    tool_call_id: NonEmptyText | None = None
    function_call: CalledFunction | None = None
    name: NonEmptyText | None = None

    @classmethod
    def reads(cls, said: Mapping[str, object]) -> frozenset[str]:
        """`name` tells which call a result of the role `function` is of. Elsewhere it names a speaker."""
        fields = super().reads(said)
        return fields if said.get("role") == "function" else fields - {"name"}

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.role not in ("assistant", "function"):
            raise conflict("content", "Each message needs '{field}', a string or a list of text parts.")
        if self.role != "assistant":
            if any(part.is_reasoning for part in self.content or ()):
                raise conflict("content", "Only an assistant's '{field}' can have parts of reasoning.")
            for field in "refusal", "tool_calls", "function_call":
                if getattr(self, field):
                    raise conflict(field, "Only an assistant's message can have '{field}'.")
        if self.tool_calls and self.function_call:
            raise conflict("function_call", "'{field}' is the older name of 'tool_calls'; send one of them.")
        return self

    @model_validator(mode="after")
    def _results_name_their_call(self) -> Self:
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise conflict("tool_call_id", "'{field}' goes with a message of the role 'tool', and with no other.")
        if self.role == "function" and self.name is None:
            raise conflict("name", "A message of the role 'function' needs '{field}', the function's.")
        return self

    def require_honoured(self, info: EngineInfo, place: str) -> None:
        """Raises UnsupportedOptionError where the model could not be shown this message."""
        shown_as = {"role": self.role in ("tool", "function"), "tool_calls": self.tool_calls}
        name = next((name for name, used in {**shown_as, "function_call": self.function_call}.items() if used), None)
        if name is not None and not info.tool_choices:
            raise UnsupportedOptionError(
                f"The {info.engine} engine does not honour tools, nor their calls and results: '{place}.{name}'.",
                f"{place}.{name}",
            )

    def to_engine(self) -> Message:
        """As chat templates know it: `developer` and `function` are other names of `system` and `tool`."""
        calls = [call.function.to_engine(call.id) for call in self.tool_calls or ()]
        if self.function_call is not None:
            calls.append(self.function_call.to_engine())
        answers = self.tool_call_id
        if self.role == "function" and self.name is not None:
            answers = _call_id(self.name)
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        return Message(role, self._text(), tuple(calls), answers)

    def _text(self) -> str:
        """Parts a line each, as vLLM joins them; then the refusal, once, as a stream of ours would end with it."""
        text = "\n".join(part.shown for part in self.content or () if not part.is_reasoning)
        if not self.refusal or text.endswith(self.refusal):
            return text
        return f"{text}\n\n{self.refusal}" if text else self.refusal


MAX_MESSAGES = 2048
Messages = Annotated[Listed[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
"""A conversation, of which no more is read than any may have."""


def require_shown(messages: Sequence[ChatMessage], info: EngineInfo) -> None:
    """Raises UnsupportedOptionError naming the first of the messages that the engine cannot show to its model."""
    for index, message in enumerate(messages):
        message.require_honoured(info, f"messages[{index}]")


def log_dropped(messages: Sequence[HistoryBody], request_id: str) -> None:
    """Counts for the debug log what a conversation held and nobody read: known keys by name, never a caller's text."""
    if logger.isEnabledFor(logging.DEBUG):
        counted: Counter[str] = sum((message.dropped() for message in messages), Counter())
        if counted:
            said = " ".join(f"{name}={count}" for name, count in sorted(counted.items()))
            logger.debug("%s dropped from messages: %s", request_id, said)
