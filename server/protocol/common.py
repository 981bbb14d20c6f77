"""What chat, completion and check requests share."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from server.engines.base import Sampling
from server.protocol.invalid import conflict
from server.protocol.unsupported import IN_GENERATION, IN_STREAM_OPTIONS, Neutral, drop_neutral

MAX_INT = 2**31 - 1
_MAX_STOPS = 4


def encodable(text: str) -> str:
    """The text itself. JSON can spell half a character (a lone surrogate), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("lone_surrogate", "it should be text without lone surrogates") from None
    return text


def _stops(value: object) -> object:
    """One string or a list of them, as a tuple; pydantic's own union would report both branches at once."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        return tuple(value)
    if value is None:
        return None
    raise PydanticCustomError("stop", f"it should be a string or a list of up to {_MAX_STOPS} strings")


Text = Annotated[str, AfterValidator(encodable)]
NonEmptyText = Annotated[str, Field(min_length=1), AfterValidator(encodable)]
Stops = Annotated[tuple[NonEmptyText, ...], Field(max_length=_MAX_STOPS)]


class Body(BaseModel):
    """A request body or an object in one: no coercion between types, no unknown field, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    not_honoured: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        return drop_neutral(body, cls.not_honoured)


class StreamOptions(Body):
    """Options of a stream."""

    not_honoured: ClassVar[Neutral] = IN_STREAM_OPTIONS

    include_usage: bool | None = None


class SamplingBody(Body, ABC):
    """The fields by which a caller says how to draw an answer.

    `user` and `safety_identifier` name the caller's own end user to OpenAI's abuse monitoring. They ask for nothing
    that could be honoured or not, SDKs send them by default, and they are neither stored nor logged.
    """

    not_honoured: ClassVar[Neutral] = IN_GENERATION

    model: NonEmptyText
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_INT)
    max_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, le=2**62)
    stop: Annotated[Stops | None, BeforeValidator(_stops)] = None
    user: str | None = None
    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise conflict("stream_options", "'{field}' is only allowed together with 'stream': true.")
        return self

    @property
    def answers_per_prompt(self) -> int:
        """`n`, with OpenAI's default."""
        return self.n or 1

    @property
    def token_limit(self) -> int | None:
        """Length asked for, if any."""
        return self.max_tokens

    @property
    @abstractmethod
    def logprob_count(self) -> int | None:
        """As `Sampling.logprobs` has it."""

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, max_tokens: int, answer: int) -> Sampling:
        """For the answer-th answer to one prompt. With a seed each of them draws from its own."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=Sampling.temperature if self.temperature is None else self.temperature,
            top_p=Sampling.top_p if self.top_p is None else self.top_p,
            seed=None if self.seed is None else self.seed + answer,
            stop=self.stop or (),
            logprobs=self.logprob_count,
        )
