"""What requests for answers share: the fields by which a caller says how to draw one."""

import re
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.engines.base import EngineInfo
from server.engines.defaults import MinP, Penalty, RepetitionPenalty, Temperature, TokenLimit, TopK, TopP
from server.engines.request import Grammar, Sampling, SamplingDefaults, require_honoured
from server.openai.body import MAX_INT, Body, Listed, Text, TokenId, encodable
from server.openai.invalid import conflict
from server.openai.structure import ResponseFormat, StructuredOutputs
from server.openai.unsupported import IN_GENERATION, IN_STREAM_OPTIONS, Neutral

MAX_LOGPROBS = 20
"""As in vLLM, and in OpenAI's chats: alternatives told of each token."""
MAX_BIAS = 100
_MAX_STOPS = 4
_MAX_STOP_CHARACTERS = 512
_MAX_STOP_IDS = 128
_MAX_BIASES = 1024
"""vLLM goes over all of them in Python whenever its batch changes."""
_MAX_SEED = 2**63 - 1
_TOKEN_KEY = re.compile("0|[1-9][0-9]{0,9}")


def _stops(value: object) -> object:
    """One string or a list of them, as a tuple; pydantic's own union would report both branches at once."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        return tuple(value)
    if value is None:
        return None
    raise PydanticCustomError("stop", f"it should be a string or a list of up to {_MAX_STOPS} strings")


def _biases(value: object) -> object:
    """JSON's keys are strings; these must spell token ids, each in one way only. The first wrong pair is told."""
    if not isinstance(value, dict):
        return value
    for key, bias in value.items():
        if not _TOKEN_KEY.fullmatch(key) or int(key) > MAX_INT:
            raise PydanticCustomError(
                "logit_bias", "every key should be a token id in digits, unlike {key}", {"key": ascii(key)[:40]}
            )
        if type(bias) not in (int, float) or not -MAX_BIAS <= bias <= MAX_BIAS:
            return {int(key): bias}  # which pydantic refuses, and not each of many thousand
    return {int(key): bias for key, bias in value.items()}


StopText = Annotated[str, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS), AfterValidator(encodable)]
"""A text that ends an answer, or that none may hold."""
Stops = Annotated[tuple[StopText, ...], Field(fail_fast=True), Field(max_length=_MAX_STOPS)]


Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
TokenKey = Annotated[str, Field(pattern=f"^({_TOKEN_KEY.pattern})$")]
Biases = Annotated[dict[int, Bias], Field(max_length=_MAX_BIASES)]
NamedBiases = Annotated[dict[TokenKey, Bias], Field(max_length=_MAX_BIASES)]


class StreamOptions(Body):
    """Options of a stream."""

    not_honoured: ClassVar[Neutral] = IN_STREAM_OPTIONS

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """vLLM's: with `include_usage`, every chunk says the counts so far."""


class SamplingBody(Body, ABC):
    """What every request for an answer may say. Ranges are vLLM's, and OpenAI's where both have the field. Null is the
    same as leaving a field out, and so are a seed of -1 (vLLM's word for none) and a bias of 0.

    `user` and `safety_identifier` name the caller's own end user to OpenAI's abuse monitoring. They ask for nothing
    that could be honoured or not, SDKs send them by default, and they are neither stored nor logged.
    """

    not_honoured: ClassVar[Neutral] = IN_GENERATION

    model: Text | None = None
    stream: bool | None = None
    min_tokens: int | None = Field(None, ge=0, le=MAX_INT)
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: Annotated[Biases | None, BeforeValidator(_biases, json_schema_input_type=NamedBiases | None)] = None
    allowed_token_ids: Listed[TokenId] | None = Field(None, min_length=1)
    bad_words: Listed[StopText] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=_MAX_SEED)
    stop: Annotated[Stops | None, BeforeValidator(_stops, json_schema_input_type=StopText | Stops | None)] = None
    stop_token_ids: Listed[TokenId] | None = Field(None, max_length=_MAX_STOP_IDS)
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    user: str | None = None
    safety_identifier: str | None = None

    format_field: ClassVar[str]
    """OpenAI's field for what the answer must match."""

    @model_validator(mode="after")
    def _one_form_of_answer(self) -> Self:
        if self.format_asked() is not None and self.structured_outputs is not None:
            raise conflict(
                "structured_outputs",
                f"'{{field}}' and '{self.format_field}' both say what the answer must match; send one of them.",
            )
        return self

    @property
    def form_field(self) -> str | None:
        """The field that says what the answer must match, if one does."""
        if self.structured_outputs is not None:
            return "structured_outputs"
        return None if self.format_asked() is None else self.format_field

    @abstractmethod
    def format_asked(self) -> Grammar | None:
        """What `format_field` asks for."""

    @property
    def answers_per_prompt(self) -> int:
        """How many answers each prompt gets."""
        return 1

    @property
    @abstractmethod
    def token_limit(self) -> int | None:
        """Length asked for, if any."""

    @property
    @abstractmethod
    def logprob_count(self) -> int | None:
        """As `Sampling.logprobs` has it."""

    @property
    def prompt_alternatives(self) -> int | None:
        """Alternatives told of each token of the prompt, in vLLM's form; None where that is not asked for."""
        return None

    @property
    def prompt_logprob_count(self) -> int | None:
        """As `Sampling.prompt_logprobs` has it."""
        return self.prompt_alternatives

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return False

    @property
    def wants_usage_everywhere(self) -> bool:
        """Whether every chunk of a stream says its choice's token counts so far."""
        return False

    def seed_of(self, answer: int) -> int | None:
        """That of the answer-th answer to one prompt: with a seed each of them draws from its own."""
        return None if self.seed in (None, -1) else (self.seed + answer) & _MAX_SEED

    def sampling(self, max_tokens: int, grammar: Grammar | None, defaults: SamplingDefaults) -> Sampling:
        """For the first answer to one prompt, which must match `grammar`."""

        def drawn(name: str) -> Any:
            asked = getattr(self, name)
            return getattr(defaults, name) if asked is None else asked

        return Sampling(
            max_tokens=max_tokens,
            temperature=drawn("temperature"),
            top_p=drawn("top_p"),
            seed=self.seed_of(0),
            stop=self.stop or (),
            logprobs=self.logprob_count,
            prompt_logprobs=self.prompt_logprob_count,
            top_k=max(0, drawn("top_k")),
            min_p=drawn("min_p"),
            frequency_penalty=drawn("frequency_penalty"),
            presence_penalty=drawn("presence_penalty"),
            repetition_penalty=drawn("repetition_penalty"),
            logit_bias={token: bias for token, bias in (self.logit_bias or {}).items() if bias},
            allowed_token_ids=tuple(dict.fromkeys(self.allowed_token_ids or ())),
            bad_words=tuple(self.bad_words or ()),
            min_tokens=self.min_tokens or 0,
            ignore_eos=bool(self.ignore_eos),
            stop_token_ids=tuple(dict.fromkeys(self.stop_token_ids or ())),
            include_stop=bool(self.include_stop_str_in_output),
            grammar=grammar,
        )

    def require_honoured(self, sampling: Sampling, info: EngineInfo) -> None:
        """Raises UnsupportedOptionError naming the field of this request that the engine does not honour."""
        require_honoured(sampling, info.engine, info.options, self.field_of)

    def field_of(self, option: str) -> str:
        """The field of this request that a field of its Sampling comes from."""
        names = {"include_stop": "include_stop_str_in_output", "grammar": self.form_field or self.format_field}
        return names.get(option, option)

    def grammar(self) -> Grammar | None:
        """What an answer must match."""
        return self.format_asked() if self.structured_outputs is None else self.structured_outputs.to_engine()


class CompletionBody(SamplingBody, ABC):
    """What chat and text completions share beyond that."""

    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_INT)
    max_tokens: TokenLimit | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None

    format_field = "response_format"

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise conflict("stream_options", "'{field}' is only allowed together with 'stream': true.")
        if self.prompt_logprobs is not None and self.stream:
            raise conflict("prompt_logprobs", "'{field}' is told of whole answers only; leave out 'stream'.")
        return self

    def format_asked(self) -> Grammar | None:
        return None if self.response_format is None else self.response_format.to_engine()

    @property
    def answers_per_prompt(self) -> int:
        """`n`, with OpenAI's default."""
        return self.n or 1

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def prompt_alternatives(self) -> int | None:
        return self.prompt_logprobs

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def wants_usage_everywhere(self) -> bool:
        return self.wants_usage_chunk and bool(self.stream_options and self.stream_options.continuous_usage_stats)
