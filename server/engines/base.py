"""The contract between the server and an engine.

An engine owns the model, its tokenizer and the attached guards. It takes token ids and gives back a stream of
events. It never raises for a verdict: an abstention is an outcome (`Finish`), not an exception.
"""

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from guards.artifact.manifest import ScoreQuantiles
from guards.artifact.pins import ArtifactPath
from guards.core.beside import ALONE, Beside
from guards.core.policy import Policy, Rule
from guards.core.quantiles import place
from guards.core.trace import PartTrace
from guards.core.verdict import GuardKind, GuardMode, Reading, Stage
from server.engines.errors import UnsupportedOptionError
from server.engines.tools import Tool, ToolCall, ToolCallParser, ToolChoice, ToolUse

NO_VARIABLES: Mapping[str, object] = MappingProxyType({})
NO_RULES = Policy()
"""Every guard under its default rule."""

if TYPE_CHECKING:
    from prometheus_client import Metric


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
class TokenLogprob:
    """A drawn token's natural-log probability, with the most likely alternatives at its position."""

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


class RankedToken(NamedTuple):
    """A token that could have come at a position, and how likely it was; rank 1 is the likeliest."""

    token_id: int
    token: str
    token_bytes: bytes
    logprob: float
    rank: int


@dataclass(frozen=True)
class PromptToken:
    """One token of a prompt as the model, given those before it, saw it come.

    `itself` is None for the first token, and where a guard withholds it; `top` are the likeliest, in order.
    """

    itself: RankedToken | None = None
    top: tuple[RankedToken, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """A piece of answer: `tokens` newly drawn tokens and the text they complete (may be empty).

    `token_ids` are those tokens, where the engine tells; some tool-call parsers look at them. `prompt` has an entry for
    each token of the prompt, in an answer's first chunk, where `Sampling.prompt_logprobs` asks for it.
    """

    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    token_ids: tuple[int, ...] = ()
    prompt: tuple[PromptToken, ...] = ()


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    ABSTAIN = "abstain"
    ERROR = "error"
    GIVEN_UP = "given_up"
    """Nothing ended it yet when it was cancelled, mostly since its caller left. Nobody gets this one."""


@dataclass(frozen=True)
class GuardScore:
    """One guard's reading at one position.

    `score` and `tau` belong to the part (cube) with the smallest score/tau; a detector fires where
    score <= tau. For an intervention `score` is what it did there, in a unit of its own, and `tau` is None.
    """

    guard: str
    skill: str
    method: str
    reading: Reading
    score: float
    tau: float | None
    layers: tuple[int, ...]
    position: int
    stage: Stage
    digest: str
    """Of the artifact that read it; another may have taken its place since."""
    part: str = ""


@dataclass(frozen=True)
class GuardTrace:
    """What one detector's parts that judge prompts read along a prompt."""

    guard: str
    parts: tuple[PartTrace, ...]


@dataclass(frozen=True)
class Hit:
    """A detector fired at a position that its scope covers. `mode` says whether that was enforced."""

    score: GuardScore
    mode: GuardMode


@dataclass(frozen=True)
class PromptHits:
    """A detector fired inside a prompt whose log-probabilities were asked for: `first`, and at how many positions.

    Where its mode is enforced, nothing is told of the tokens after these.
    """

    first: Hit
    positions: int


@dataclass(frozen=True)
class GuardFault:
    """A guard without a valid reading at a position that it had to read: MISSING or INVALID."""

    guard: str
    reading: Reading
    position: int
    stage: Stage
    digest: str


@dataclass(frozen=True)
class Acted:
    """What an intervention did to an answer: how much of its unit, over all positions."""

    guard: str
    unit: str
    amount: float


@dataclass(frozen=True)
class Finish:
    """The last event of every request.

    `hits`: the first hit of each guard, enforced or shadowed. `prompt_scores`: every guard at the last prompt
    token. `verified`: every position at which a token was drawn had a finite reading of every guard; `faults`: each
    guard's first that was not. `error` is set, for the operator's log only, when `reason` is ERROR.
    """

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    verified: bool
    hits: tuple[Hit, ...] = ()
    prompt_scores: tuple[GuardScore, ...] = ()
    acted: tuple[Acted, ...] = ()
    prompt_hits: tuple[PromptHits, ...] = ()
    faults: tuple[GuardFault, ...] = ()
    error: str | None = None

    def __post_init__(self) -> None:
        if self.reason is FinishReason.ABSTAIN:
            assert any(hit.mode is GuardMode.ENFORCE for hit in self.hits), (
                "an abstention names the hit that enforced it"
            )

    @property
    def abstained_on(self) -> Hit | None:
        """The enforced hit that ended this answer, if one did."""
        if self.reason is not FinishReason.ABSTAIN:
            return None
        return next(hit for hit in self.hits if hit.mode is GuardMode.ENFORCE)

    @property
    def withheld_in_prompt(self) -> PromptHits | None:
        """The first guard that withholds log-probabilities of this prompt, if one does."""
        return next((hits for hits in self.prompt_hits if hits.first.mode is GuardMode.ENFORCE), None)

    def drawn_before(self, hit: Hit) -> int:
        """Tokens of the answer that were drawn before one of its hits."""
        return max(0, hit.score.position - (self.prompt_tokens - 1))

    def sent_before(self, hit: Hit, hold_back_tokens: int | None) -> int:
        """How many of them a caller may have, where the hit withheld the rest.

        `hold_back_tokens`: by how many the caller's stream lags; None where an answer goes out whole.
        """
        if self.reason is not FinishReason.ABSTAIN or hold_back_tokens is None:
            return 0
        return max(0, self.drawn_before(hit) - hold_back_tokens)


Event = Chunk | Finish


class EventStream(AsyncIterator[Event]):
    """One answer's events: Chunks, then exactly one Finish."""

    @abstractmethod
    async def aclose(self) -> Finish | None:
        """Gives the answer up and cancels it, also when nothing was iterated yet. Safe to call twice.

        Returns what is known of an answer whose Finish was not handed on: a hit that was found ended it, GIVEN_UP where
        nothing did. None of one that was over.
        """


class TemplateState(StrEnum):
    """Whether the live chat template and tokenizer give the token ids that a guard's canaries were calibrated with."""

    VERIFIED = "verified"
    CHANGED = "changed"
    """They do not, and the guard is not verified."""
    ACCEPTED = "accepted"
    """They do not, and the operator took it."""
    UNBOUND = "unbound"
    """Nothing in the artifact tells."""


@dataclass(frozen=True)
class GuardInfo:
    """An attached guard as shown to callers; `detail` is for operators only."""

    name: str
    skill: str
    method: str
    kind: GuardKind
    rule: Rule
    """How it judges where a request's policy says nothing else."""
    layers: tuple[int, ...]
    frames: tuple[str, ...]
    """Prompt frames the guard was calibrated in: "chat", "bare", or a template with {text}."""
    template_sha256: str | None
    """Digest of the chat template that the frame "chat" was calibrated with, None without one."""
    template: TemplateState
    digest: str
    """SHA-256 of the artifact."""
    template_difference: str | None = None
    """What the live chat template or tokenizer gave and what was wanted, where they are CHANGED or ACCEPTED."""
    unit: str | None = None
    """What an intervention counts of its acting; None of a detector."""
    variant: str | None = None
    """Of its method, where that has several."""
    parts: tuple[str, ...] = ()
    """The label of each part, in the order of the rule's taus."""
    pinned: bool = False
    """Whether the operator named its digest."""
    signed_by: tuple[str, ...] = ()
    """Trusted public keys, in hexadecimal, that vouch for the digest."""
    beside: Beside = ALONE
    """Which of the other guards change what it reads."""
    quantiles: ScoreQuantiles | None = None
    """How common scores of prompts are where the skill is not asked for; None where nobody measured it."""
    detail: Mapping[str, object] = field(default_factory=dict)

    def place_of(self, score: GuardScore) -> tuple[float, float] | None:
        """Between which levels of `quantiles` the score of a prompt lies, as `guards.core.quantiles.place` has it.

        By the artifact's tau, whatever holds for the caller. None where there are no quantiles.
        """
        if self.quantiles is None:
            return None
        tau = self.rule.taus[self.parts.index(score.part)]
        return place(self.quantiles.over_tau, self.quantiles.examples, score.score / tau)


@dataclass(frozen=True)
class EngineInfo:
    """What runs: shown by /v1/models, /v1/guards, the banner and the build-info metric."""

    engine: str
    engine_version: str
    model: str
    architecture: str
    device: str
    dtype: str
    max_model_tokens: int
    longest_token: int
    """Characters of the vocabulary's longest token: no text of more than that many for each token of context fits."""
    template_sha256: str | None
    guards: tuple[GuardInfo, ...]
    template_names: frozenset[str] = frozenset()
    """What the chat template reads of its surroundings."""
    options: frozenset[str] = COMMON_OPTIONS
    """Fields of `Sampling` that this engine honours."""
    defaults: SamplingDefaults = SamplingDefaults()
    """What the model itself asks for where a request does not say."""
    tool_choices: frozenset[ToolChoice] = frozenset()
    """How tools may be asked for; empty where neither they nor their results can be shown to the model."""

    @property
    def beside(self) -> Mapping[str, Beside]:
        """What other guards are to each."""
        return {guard.name: guard.beside for guard in self.guards}


@dataclass(frozen=True)
class Load:
    """Requests in the running batch, and requests waiting for a place in it."""

    running: int
    waiting: int


@dataclass(frozen=True)
class Message:
    """One chat message as the chat template takes it.

    An assistant's may hold calls, whose arguments are JSON objects; one of the role `tool` answers one of them.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Engine(Protocol):
    """What the server needs of an engine. Called from one event loop; `encode_text`, `encode_chat`, `decode`, `texts`,
    `spell`, `plan_tools` and `prepare` from any thread."""

    @property
    def info(self) -> EngineInfo:
        """Static facts; available once `start` returned."""
        ...

    async def start(self) -> None:
        """Loads the model, attaches every guard (all or nothing) and starts the loop. Raises on any failure."""
        ...

    async def stop(self) -> None:
        """Ends the loop; running requests get a Finish with reason ERROR. Safe to call twice."""
        ...

    async def offer(self, name: str, source: ArtifactPath | None) -> GuardInfo:
        """Reads another artifact for a guard, from here or from the guard's own folder, and says what guard it makes.

        Nothing of what runs is changed. Raises SkillguardError where it cannot take the guard's place.
        """
        ...

    async def exchange(self) -> None:
        """Puts the offered artifact in the place of the guard's, which is then the offered one: twice is as before.

        Only while no request runs; nothing that the guards before kept of texts is read by those after. Raises
        SkillguardError with the guards as before, or with an engine whose canaries, or whose health, tell.
        """
        ...

    async def verify(self) -> Mapping[str, str | None]:
        """Sends each artifact's canaries through the live engine, unless its template is CHANGED.

        Returns, per guard name, None where every canary agrees and else a sentence saying what, got and wanted.
        """
        ...

    def healthy(self) -> bool:
        """False once the loop died; the server is then no longer ready."""
        ...

    def encode_text(self, text: str, *, opened: bool = True) -> tuple[int, ...]:
        """Token ids of a bare prompt. Special tokens spelled out in the text are taken as plain text.

        `opened`: with the tokens that the tokenizer adds around a text, such as the one that opens it.
        """
        ...

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        variables: Mapping[str, object] = NO_VARIABLES,
        *,
        answered: bool = True,
    ) -> tuple[int, ...]:
        """Token ids of a conversation in the chat template. `answered`: with the opening of the assistant's turn.

        `variables` are what a request gives the template besides. Guards were calibrated without them: where they would
        change the token ids, the request is refused, unless there are no guards or another template was accepted.

        Raises PromptError when the template refuses the conversation, UnsupportedOptionError for the variables.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included. Raises PromptError on an id outside the vocabulary."""
        ...

    def texts(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Each token's own text, as beside log-probabilities. Raises like `decode`."""
        ...

    def spell(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Each token as the tokenizer's vocabulary writes it. Raises like `decode`."""
        ...

    def plan_tools(self, use: ToolUse) -> ToolPlan:
        """How calls of these tools are drawn and read. Only asked for a choice that `info.tool_choices` names.

        Raises UnsupportedOptionError where the tools ask for more than the choice can keep.
        """
        ...

    def prepare(self, sampling: Sampling) -> None:
        """Checks the options against the model, and compiles a grammar, which may take a while: `submit` then does not.

        Raises InvalidOptionError.
        """
        ...

    def submit(self, request: EngineRequest) -> EventStream:
        """Queues a request and returns its events.

        Raises EngineBusyError, PromptTooLongError, PromptError (empty, or a token id outside the vocabulary),
        UnsupportedOptionError, InvalidOptionError, EngineStoppedError, or PolicyError (a policy that does not fit the
        guards) at the call itself, before anything is queued.
        """
        ...

    async def check(
        self, prompt_token_ids: tuple[int, ...], request_id: str, policy: Policy = NO_RULES, *, tenant: str = ""
    ) -> tuple[GuardScore, ...]:
        """One forward pass over a prompt: every guard's reading at its last token, under this policy's taus.

        `tenant` as `EngineRequest` has it. Raises like `submit`; GuardReadingError where a guard gave no valid reading,
        EngineError where the pass failed.
        """
        ...

    async def trace(
        self, prompt_token_ids: tuple[int, ...], request_id: str, policy: Policy = NO_RULES, *, tenant: str = ""
    ) -> tuple[GuardTrace, ...]:
        """One forward pass over a prompt: what every detector reads at each token, as if the prompt ended there.

        Raises like `check`.
        """
        ...

    def load(self) -> Load:
        """Current queue state."""
        ...

    def metrics(self) -> Iterable["Metric"]:
        """What the engine itself counts, under names of its own; read when Prometheus asks."""
        ...
