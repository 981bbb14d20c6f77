"""POST /v1/completions."""

from typing import Annotated, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.openai.body import MAX_INT, NonEmptyText, TokenId, encodable
from server.openai.common import MAX_LOGPROBS, CompletionBody
from server.openai.invalid import conflict, refused_option
from server.openai.unsupported import IN_COMPLETION, Neutral

Prompt = str | tuple[int, ...]
"""Text, or its token ids; neither is empty."""
AsksPrompt = NonEmptyText | Annotated[list[TokenId], Field(min_length=1)]
"""As a request spells one."""


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

    prompt: Annotated[
        tuple[Prompt, ...],
        BeforeValidator(
            _to_prompts, json_schema_input_type=AsksPrompt | Annotated[list[AsksPrompt], Field(min_length=1)]
        ),
    ]
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _nothing_is_ranked(self) -> Self:
        if self.best_of is not None and self.best_of != self.answers_per_prompt:
            raise refused_option("best_of", "Answers are not ranked here: '{field}' must equal 'n', or be left out.")
        return self

    @model_validator(mode="after")
    def _something_is_asked_for(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise conflict("max_tokens", "'{field}': 0 asks for nothing, unless together with 'echo': true.")
        return self

    @property
    def token_limit(self) -> int | None:
        """Where only the prompt is asked for, one token is drawn all the same, since guards judge where one is."""
        return 1 if self.max_tokens == 0 else self.max_tokens

    @property
    def logprob_count(self) -> int | None:
        return self.logprobs

    def field_of(self, option: str) -> str:
        echoed = option == "prompt_logprobs" and self.prompt_logprobs is None
        return "echo" if echoed else super().field_of(option)

    @property
    def prompt_logprob_count(self) -> int | None:
        asked = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((each for each in asked if each is not None), default=None)
