"""What an engine is asked for: messages and token ids, how to draw, and what keeps an answer to a form."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum

from guards.core.policy import Policy
from server.engines.errors import UnsupportedOptionError
from server.engines.tools import ToolCall, ToolCallParser


class GrammarKind(StrEnum):
    """How a `Grammar` is written."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    CHOICE = "choice"
    EBNF = "ebnf"
    STRUCTURAL_TAG = "structural_tag"


@dataclass(frozen=True)
class Grammar:
    """What an answer's text must match.

    `text` is a JSON schema, a pattern, a grammar, a JSON list of choices, or xgrammar's structural tag as JSON.
    """

    kind: GrammarKind
    text: str = ""


@dataclass(frozen=True)
class SamplingDefaults:
    """How answers are drawn where a request does not say. Every default here asks for nothing."""

    max_tokens: int | None = None
    """Length of an answer; None for all that the context leaves."""
    most_tokens: int | None = None
    """Longest answer, whatever a request asks for."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. Temperature 0 is greedy. Every default asks for nothing.

    An engine honours the fields up to `logprobs`; of the rest those that its `EngineInfo.options` names.

    A log-probability in a prompt tells what the model would have drawn there. So guards judge the place as if the
    prompt ended there, and it is told where a token would have been: nothing that other requests would not be told.
    """

    max_tokens: int
    temperature: float = SamplingDefaults.temperature
    top_p: float = SamplingDefaults.top_p
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """None: none. 0: of the drawn token. n: of the n most likely tokens as well."""
    prompt_logprobs: int | None = None
    """The same of every token of the prompt but the first, where a guard does not withhold it."""
    top_k: int = SamplingDefaults.top_k
    min_p: float = SamplingDefaults.min_p
    frequency_penalty: float = SamplingDefaults.frequency_penalty
    presence_penalty: float = SamplingDefaults.presence_penalty
    repetition_penalty: float = SamplingDefaults.repetition_penalty
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    """Whether the stop string that was met is part of the text."""
    grammar: Grammar | None = None


COMMON_OPTIONS = frozenset({"max_tokens", "temperature", "top_p", "seed", "stop", "logprobs"})
ALL_OPTIONS = frozenset(field.name for field in fields(Sampling))
HONOURED: Mapping[str, frozenset[str]] = {"transformers": ALL_OPTIONS, "vllm": ALL_OPTIONS}
"""Engines that serve models, and the fields of `Sampling` that each honours."""
CALLS_TOOLS = frozenset({"vllm"})
"""Those of them that honour tools, where the model's chat template shows them."""


def require_honoured(
    sampling: Sampling, engine: str, options: frozenset[str], named: Callable[[str], str] = str
) -> None:
    """Raises UnsupportedOptionError naming the first option that asks for something outside `options`.

    `named` gives the name that the caller knows an option by.
    """
    neutral = Sampling(sampling.max_tokens)
    for each in fields(Sampling):
        if each.name not in options and getattr(sampling, each.name) != getattr(neutral, each.name):
            name = named(each.name)
            raise UnsupportedOptionError(f"The {engine} engine does not honour '{name}'; leave it out.", name)


@dataclass(frozen=True)
class ToolPlan:
    """How one request's calls are drawn and read."""

    parser: Callable[[], ToolCallParser]
    """Makes one for each answer."""
    grammar: Grammar | None = None
    """What keeps an answer to the form of calls, where the request asks for that."""
    special_tokens: bool = False
    """As `EngineRequest.special_tokens` has it."""


@dataclass(frozen=True)
class EngineRequest:
    """One answer to draw for one prompt (`n` answers are `n` requests).

    `request_id` was no other's before, ended ones included: what is given up is cancelled by its id, a little later.
    `policy` says how every guard judges it; a guard that is missing there is under its default rule.
    `special_tokens`: whether special tokens that the model writes are part of the text, for a ToolCallParser to read.
    `keeps_places`: whether what guards read inside the prompt is kept, for `Engine.trace`.
    `proof`: it is a canary's. No load puts it off: it is let in though the queue is full, and before all that waits.
    And it is computed anew, since what a guard once read is no proof of what it reads now.
    `tenant`: whose it is. Prefixes are cached for each tenant apart, since how soon a prompt is read would tell one
    tenant what another has sent. Empty of what no caller asks for.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    policy: Policy = field(default_factory=Policy)
    special_tokens: bool = False
    keeps_places: bool = False
    proof: bool = False
    tenant: str = ""


@dataclass(frozen=True)
class Message:
    """One chat message as the chat template takes it.

    An assistant's may hold calls, whose arguments are JSON objects; one of the role `tool` answers one of them.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
