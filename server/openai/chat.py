"""POST /v1/chat/completions."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from server.engines.base import EngineInfo
from server.engines.request import Message
from server.engines.tools import ToolChoice, ToolUse
from server.openai.body import MAX_INT
from server.openai.calling import Calling
from server.openai.common import MAX_LOGPROBS, CompletionBody
from server.openai.history import ChatMessage, Messages, require_shown
from server.openai.invalid import conflict
from server.openai.moderation import Moderated
from server.openai.template import Effort, Variables, template_variables
from server.openai.tools import Choice, Tools
from server.openai.unsupported import IN_CHAT, Neutral


class ChatRequest(CompletionBody):
    """A conversation to continue. Where both limits are given, `max_completion_tokens` holds: it is the newer name."""

    not_honoured: ClassVar[Neutral] = IN_CHAT

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: Tools | None = None
    tool_choice: Choice = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Variables = None
    reasoning_effort: Effort | None = None
    moderation: Moderated | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise conflict("top_logprobs", "'{field}' is only allowed together with 'logprobs': true.")
        self._calling.require_sound(self.form_field)
        return self

    @property
    def _calling(self) -> Calling:
        choice = ToolChoice.AUTO if self.tool_choice is None else self.tool_choice.to_engine()
        chosen = None if self.tool_choice is None else self.tool_choice.function
        return Calling(
            tools=tuple(tool.to_engine() for tool in self.tools or ()),
            choice=choice,
            name=None if chosen is None else chosen.name,
            parallel=self.parallel_tool_calls is not False,
        )

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def history(self) -> Sequence[ChatMessage]:
        """The conversation as it was sent."""
        return self.messages

    def to_engine(self) -> list[Message]:
        """The conversation as the chat template takes it."""
        return [message.to_engine() for message in self.messages]

    def template_variables(self, info: EngineInfo) -> dict[str, Any]:
        """What the chat template is given besides. Raises UnsupportedOptionError."""
        return template_variables(
            self.chat_template_kwargs, self.reasoning_effort, info, effort_field="reasoning_effort"
        )

    def tool_use(self, info: EngineInfo) -> ToolUse | None:
        """What may be called; None where nothing may, and then the model is shown no tools.

        Raises UnsupportedOptionError naming the field of this request that the engine does not honour.
        """
        use = self._calling.use(info)
        require_shown(self.messages, info)
        return use
