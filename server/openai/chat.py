"""POST /v1/chat/completions."""

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from server.engines.base import EngineInfo, Message
from server.engines.errors import UnsupportedOptionError
from server.engines.tools import ToolChoice, ToolUse
from server.openai.body import MAX_INT
from server.openai.common import MAX_LOGPROBS, SamplingBody
from server.openai.history import ChatMessage, require_shown
from server.openai.invalid import conflict
from server.openai.template import Effort, Variables, template_variables
from server.openai.tools import Choice, Tools, require_tools
from server.openai.unsupported import IN_CHAT, Neutral


class ChatRequest(SamplingBody):
    """A conversation to continue. Where both limits are given, `max_completion_tokens` holds: it is the newer name."""

    not_honoured: ClassVar[Neutral] = IN_CHAT

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: Tools | None = None
    tool_choice: Choice = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Variables = None
    reasoning_effort: Effort | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise conflict("top_logprobs", "'{field}' is only allowed together with 'logprobs': true.")
        return self

    @model_validator(mode="after")
    def _tools_go_together(self) -> Self:
        if not self.tools:
            if self._choice not in (None, ToolChoice.AUTO):
                raise conflict("tool_choice", "'{field}' is only allowed together with 'tools'.")
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

    def template_variables(self, info: EngineInfo) -> dict[str, Any]:
        """What the chat template is given besides. Raises UnsupportedOptionError."""
        return template_variables(self.chat_template_kwargs, self.reasoning_effort, info)

    def tool_use(self, info: EngineInfo) -> ToolUse | None:
        """What may be called; None where nothing may, and then the model is shown no tools.

        Raises UnsupportedOptionError naming the field of this request that the engine does not honour.
        """
        require_tools(self.tools, info)
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
