"""POST /v1/chat/completions."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.engines.base import Message
from server.protocol.body import MAX_INT, Body, Text
from server.protocol.common import SamplingBody
from server.protocol.invalid import conflict
from server.protocol.unsupported import IN_MESSAGE, Neutral


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

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text | None, BeforeValidator(_join_parts)] = None
    refusal: Text | None = None

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if self.refusal is not None and self.role != "assistant":
            raise conflict("refusal", "Only an assistant's message can have a '{field}'.")
        if self.content is None and self.refusal is None:
            raise conflict("content", "Each message needs '{field}', a string or a list of text parts.")
        if None not in (self.content, self.refusal) and self.content != self.refusal:
            raise conflict("content", "'{field}' and 'refusal' of a message differ; send one of them.")
        return self

    def to_engine(self) -> Message:
        """`developer` is OpenAI's newer name of `system`; chat templates know only the older."""
        text = self.content if self.content is not None else self.refusal
        assert text is not None
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class ChatRequest(SamplingBody):
    """A conversation to continue."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

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

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def to_engine(self) -> list[Message]:
        """The conversation as the chat template takes it."""
        return [message.to_engine() for message in self.messages]
