"""POST /v1/checks: what the guards say of a prompt, without generating."""

from typing import Annotated, Self

from pydantic import BeforeValidator, model_validator

from server.openai.body import Body, Text
from server.openai.completions import AsksPrompt, Prompt, to_prompt
from server.openai.history import Messages
from server.openai.invalid import conflict
from server.openai.template import Variables


def _prompt(value: object) -> Prompt | None:
    return None if value is None else to_prompt(value)


class CheckRequest(Body):
    """One bare prompt or one conversation: a guard may read them differently."""

    model: Text | None = None
    prompt: Annotated[Prompt | None, BeforeValidator(_prompt, json_schema_input_type=AsksPrompt | None)] = None
    messages: Messages | None = None
    chat_template_kwargs: Variables = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise conflict("prompt", "Send either '{field}' or 'messages'.")
        if self.messages is None and self.chat_template_kwargs:
            raise conflict("chat_template_kwargs", "'{field}' goes with 'messages'.")
        return self
