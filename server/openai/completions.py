"""POST /v1/completions."""

from typing import Annotated, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.openai.body import MAX_INT, encodable
from server.openai.common import CompletionBody
from server.openai.invalid import refused_option
from server.openai.unsupported import IN_COMPLETION, Neutral

Prompt = str | tuple[int, ...]
"""Text, or its token ids; neither is empty."""


def to_prompt(value: object) -> Prompt:
    """Checks one prompt; here rather than by types, since a union would report what is wrong with each branch."""
    if isinstance(value, str) and value:
        return encodable(value)
    if isinstance(value, list) and value and all(type(token) is int and 0 <= token <= MAX_INT for token in value):
        return tuple(value)
    raise PydanticCustomError("prompt", "it should be a non-empty string or a non-empty list of token ids")


def _to_prompts(value: object) -> tuple[Prompt, ...]:
    """OpenAI takes four forms: a string, token ids, and a list of either. Here all are a tuple of prompts."""
    if isinstance(value, list) and value and type(value[0]) is not int:
        return tuple(to_prompt(prompt) for prompt in value)
    return (to_prompt(value),)


class CompletionRequest(CompletionBody):
    """One or several texts to continue."""

    not_honoured: ClassVar[Neutral] = IN_COMPLETION

    prompt: Annotated[tuple[Prompt, ...], BeforeValidator(_to_prompts)]
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _nothing_is_ranked(self) -> Self:
        if self.best_of is not None and self.best_of != self.answers_per_prompt:
            raise refused_option("best_of", "Answers are not ranked here: '{field}' must equal 'n', or be left out.")
        return self

    @property
    def logprob_count(self) -> int | None:
        return self.logprobs
