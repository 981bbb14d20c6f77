"""POST /v1/chat/completions."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.engines.base import EngineInfo, Message
from server.engines.errors import UnsupportedOptionError
from server.engines.tools import ToolChoice, ToolUse
from server.openai.body import MAX_INT, Body, NonEmptyText, Text
from server.openai.common import SamplingBody
from server.openai.invalid import conflict
from server.openai.tools import CallBody, Choice, Tools
from server.openai.unsupported import IN_MESSAGE, Neutral


def _join_parts(content: object) -> object:
    """A list of text parts as one text, a line each (as vLLM joins them); anything else is left to the type."""
    if not isinstance(content, list):
        return content
    for part in content:
        is_text = isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"
        if not is_text or not isinstance(part["text"], str):
            raise PydanticCustomError(
                "content_part", 'every part should be {"type": "text", "text": a string}, since only text is supported'
            )
    return "\n".join(part["text"] for part in content)


class ChatMessage(Body):
    """One message. An assistant's `refusal` is taken, since clients send our own answers back as history."""

    not_honoured: ClassVar[Neutral] = IN_MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Text | None, BeforeValidator(_join_parts)] = None
    refusal: Text | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: NonEmptyText | None = None

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if self.refusal is not None and self.role != "assistant":
            raise conflict("refusal", "Only an assistant's message can have a '{field}'.")
        if self.content is None and self.refusal is None and not self.tool_calls:
            raise conflict("content", "Each message needs '{field}', a string or a list of text parts.")
        if None not in (self.content, self.refusal) and self.content != self.refusal:
            raise conflict("content", "'{field}' and 'refusal' of a message differ; send one of them.")
        return self

    @model_validator(mode="after")
    def _calls_where_they_belong(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise conflict("tool_calls", "Only an assistant's message can have '{field}'.")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise conflict("tool_call_id", "'{field}' goes with a message of the role 'tool', and with no other.")
        return self

    def require_honoured(self, info: EngineInfo, place: str) -> None:
        """Raises UnsupportedOptionError where the model could not be shown this message."""
        name = "role" if self.role == "tool" else "tool_calls" if self.tool_calls else None
        if name is not None and not info.tool_choices:
            raise UnsupportedOptionError(
                f"The {info.engine} engine does not honour tools, nor their calls and results: '{place}.{name}'.",
                f"{place}.{name}",
            )

    def to_engine(self) -> Message:
        """`developer` is OpenAI's newer name of `system`; chat templates know only the older."""
        text = self.content if self.content is not None else self.refusal
        return Message(
            role="system" if self.role == "developer" else self.role,
            content=text or "",
            tool_calls=tuple(call.to_engine() for call in self.tool_calls or ()),
            tool_call_id=self.tool_call_id,
        )


def require_shown(messages: Sequence[ChatMessage], info: EngineInfo) -> None:
    """Raises UnsupportedOptionError naming the first of the messages that the engine cannot show to its model."""
    for index, message in enumerate(messages):
        message.require_honoured(info, f"messages[{index}]")


class ChatRequest(SamplingBody):
    """A conversation to continue."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Tools | None = None
    tool_choice: Choice = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise conflict(
                "max_tokens", "'{field}' and 'max_completion_tokens' name one limit and differ; send one of them."
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise conflict("top_logprobs", "'{field}' is only allowed together with 'logprobs': true.")
        return self

    @model_validator(mode="after")
    def _tools_go_together(self) -> Self:
        if not self.tools:
            if self.tool_choice is not None and self._choice is not None:
                raise conflict("tool_choice", "'{field}' is only allowed together with 'tools'.")
            if self.parallel_tool_calls is not None:
                raise conflict("parallel_tool_calls", "'{field}' is only allowed together with 'tools'.")
            return self
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise conflict("tools", "Two of the '{field}' have one name; give each its own.")
        if self._chosen_name is not None and self._chosen_name not in names:
            raise conflict("tool_choice", "'{field}' should name one of the 'tools'.")
        for field in "response_format", "structured_outputs":
            asked = getattr(self, field)
            if self._choice is not None and asked is not None and asked.to_engine() is not None:
                raise conflict(
                    field,
                    "'{field}' and 'tools' both say what the answer must match; send one of them, or "
                    "'tool_choice': \"none\".",
                )
        return self

    @property
    def _choice(self) -> ToolChoice | None:
        return ToolChoice.AUTO if self.tool_choice is None else self.tool_choice.to_engine()

    @property
    def _chosen_name(self) -> str | None:
        chosen = self.tool_choice.function if self.tool_choice is not None else None
        return None if chosen is None else chosen.name

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def to_engine(self) -> list[Message]:
        """The conversation as the chat template takes it."""
        return [message.to_engine() for message in self.messages]

    def tool_use(self, info: EngineInfo) -> ToolUse | None:
        """What may be called; None where nothing may, and then the model is shown no tools.

        Raises UnsupportedOptionError naming the field of this request that the engine does not honour.
        """
        if self.tools and not info.tool_choices:
            raise UnsupportedOptionError(f"The {info.engine} engine does not honour 'tools'; leave it out.", "tools")
        require_shown(self.messages, info)
        choice = self._choice
        if not self.tools or choice is None:
            return None
        if choice not in info.tool_choices:
            raise UnsupportedOptionError(
                f"'tool_choice': got {choice.value}, which this server was not set up for; "
                f"wanted one of none, {', '.join(sorted(info.tool_choices))}.",
                "tool_choice",
            )
        tools = tuple(tool.to_engine() for tool in self.tools)
        return ToolUse(tools, choice, self._chosen_name, self.parallel_tool_calls is not False)
