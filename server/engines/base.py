"""The contract between the server and an engine.

An engine owns the model, its tokenizer and the attached guards. It takes token ids (`server.engines.request`) and gives
back a stream of events (`server.engines.events`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from guards.artifact.manifest import ScoreQuantiles
from guards.artifact.pins import ArtifactPath
from guards.core.beside import ALONE, Beside
from guards.core.policy import Policy, Rule
from guards.core.quantiles import place
from guards.core.verdict import GuardKind
from server.engines.events import EventStream, GuardScore, GuardTrace
from server.engines.request import COMMON_OPTIONS, EngineRequest, Message, Sampling, SamplingDefaults, ToolPlan
from server.engines.tools import Tool, ToolChoice, ToolUse

NO_VARIABLES: Mapping[str, object] = MappingProxyType({})
NO_RULES = Policy()
"""Every guard under its default rule."""

if TYPE_CHECKING:
    from prometheus_client import Metric


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
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
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
