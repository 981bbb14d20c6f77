"""The body of a request, and the chat that it asks for."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.engines.base import EngineInfo
from server.engines.defaults import TokenLimit
from server.engines.request import Grammar, Message
from server.engines.tools import ToolChoice, ToolUse
from server.openai.body import Listed, Text
from server.openai.calling import Calling
from server.openai.common import MAX_LOGPROBS, SamplingBody
from server.openai.history import HistoryBody
from server.openai.invalid import conflict
from server.openai.moderation import Moderated
from server.openai.responses.items import Items, conversation, require_shown
from server.openai.responses.options import (
    LOGPROBS,
    Choice,
    FunctionTools,
    Included,
    Reasoning,
    ResponsesStreamOptions,
    TextFormat,
    TextOptions,
)
from server.openai.template import Effort, Variables, template_variables
from server.openai.unsupported import IN_RESPONSES, Neutral

_MOST_PAIRS = 16
"""Of `metadata`, as OpenAI has it."""


def _few_pairs(value: object) -> object:
    if isinstance(value, dict) and len(value) > _MOST_PAIRS:
        raise PydanticCustomError("metadata", "it should have at most {most} pairs", {"most": _MOST_PAIRS})
    return value


class ResponsesRequest(SamplingBody):
    """A conversation to continue. Nothing of it is stored, so it is whole in each request."""

    not_honoured: ClassVar[Neutral] = IN_RESPONSES
    format_field = "text.format"

    input: Items
    instructions: Text | None = None
    max_output_tokens: TokenLimit | None = None
    text: TextOptions | None = None
    tools: FunctionTools | None = None
    tool_choice: Choice = None
    parallel_tool_calls: bool | None = None
    include: Listed[Included] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    metadata: Annotated[dict[Text, Text] | None, BeforeValidator(_few_pairs)] = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: Variables = None
    stream_options: ResponsesStreamOptions | None = None
    moderation: Moderated | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise conflict("stream_options", "'{field}' is only allowed together with 'stream': true.")
        if self.top_logprobs and self.logprob_count is None:
            raise conflict("top_logprobs", f"'{{field}}' is only allowed together with 'include': [\"{LOGPROBS}\"].")
        if not self.to_engine():
            raise conflict("input", "'{field}' should hold a message, or a function's call or output.")
        self.calling.require_sound(self.form_field)
        return self

    @property
    def calling(self) -> Calling:
        """What is said of tools."""
        choice = self.tool_choice
        return Calling(
            tools=tuple(tool.to_engine() for tool in self.tools or ()),
            choice=ToolChoice.AUTO if choice is None else choice.to_engine(),
            name=None if choice is None else choice.name,
            parallel=self.parallel_tool_calls is not False,
        )

    @property
    def text_format(self) -> TextFormat:
        """The form of the text."""
        asked = None if self.text is None else self.text.format
        return TextFormat(type="text") if asked is None else asked

    def format_asked(self) -> Grammar | None:
        return self.text_format.to_engine()

    @property
    def token_limit(self) -> int | None:
        return self.max_output_tokens

    @property
    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None

    @property
    def history(self) -> Sequence[HistoryBody]:
        """The conversation as it was sent."""
        return self.input

    def to_engine(self) -> list[Message]:
        """The conversation as the chat template takes it."""
        return conversation(self.input, self.instructions)

    @property
    def effort(self) -> Effort | None:
        """How hard the model should think, if that is said."""
        return None if self.reasoning is None else self.reasoning.effort

    def template_variables(self, info: EngineInfo) -> dict[str, Any]:
        """What the chat template is given besides. Raises UnsupportedOptionError."""
        return template_variables(self.chat_template_kwargs, self.effort, info, effort_field="reasoning.effort")

    def tool_use(self, info: EngineInfo) -> ToolUse | None:
        """What may be called; None where nothing may, and then the model is shown no tools.

        Raises UnsupportedOptionError naming the field of this request that the engine does not honour.
        """
        use = self.calling.use(info)
        require_shown(self.input, info)
        return use

    def field_of(self, option: str) -> str:
        return {"max_tokens": "max_output_tokens", "logprobs": "include"}.get(option, super().field_of(option))
