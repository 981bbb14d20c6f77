"""POST /tokenize and POST /detokenize, in vLLM's shapes: what a prompt is to the model, and how long."""

from typing import ClassVar, Self

from pydantic import model_validator

from server.openai.body import Body, Listed, Text, TokenId
from server.openai.history import Messages
from server.openai.invalid import conflict
from server.openai.template import Variables
from server.openai.tools import Tools
from server.openai.unsupported import IN_TOKENIZE, Neutral


class TokenizeRequest(Body):
    """A bare text or a conversation, as the routes that generate would encode it.

    `add_special_tokens`: a text is opened as the tokenizer has it, which is what happens where it is not said; a
    conversation is opened by its template.
    """

    not_honoured: ClassVar[Neutral] = IN_TOKENIZE

    model: Text | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    chat_template_kwargs: Variables = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise conflict("prompt", "Send either '{field}' or 'messages'.")
        if self.messages is None:
            for field in "tools", "chat_template_kwargs", "add_generation_prompt":
                if getattr(self, field) is not None:
                    raise conflict(field, "'{field}' goes with 'messages'.")
        elif self.add_special_tokens:
            raise conflict("add_special_tokens", "The chat template opens 'messages'; leave '{field}' out.")
        return self


class DetokenizeRequest(Body):
    """Token ids to read."""

    model: Text | None = None
    tokens: Listed[TokenId]
