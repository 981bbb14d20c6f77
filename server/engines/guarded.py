"""What engines with real guards share: verification, one-pass checks, encoding, and who is let in."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from guards.artifact.canaries import disagreement, room_left
from guards.artifact.identity import refuse_mismatch
from guards.artifact.manifest import ModelIdentity
from guards.artifact.pins import ArtifactPath
from guards.artifact.signatures import trusted_by
from guards.calibration.accumulated import turns_of
from guards.contract.columns import GuardReading
from guards.contract.combination import beside
from guards.contract.evidence import trace
from guards.contract.guard import Bound, default_rules
from guards.core.beside import Beside, switched
from guards.core.policy import LARGEST, Policy, Rule
from guards.core.verdict import GuardMode, Reading
from guards.errors import GuardReadingError, PromptRefusedError, UntrustedArtifactError
from guards.methods.loaded import LoadedGuard, read_guards
from guards.model.digests import DigestCache
from guards.model.encoding import TextCodec
from server.engines.answer_state import AnswerState, GuardFacts
from server.engines.base import NO_RULES, NO_VARIABLES, EngineInfo, GuardInfo, TemplateState
from server.engines.description import describe
from server.engines.errors import (
    EngineBusyError,
    EngineError,
    EngineStoppedError,
    InvalidOptionError,
    PromptError,
    PromptTooLongError,
    UnsupportedOptionError,
)
from server.engines.events import Finish, FinishReason, GuardScore, GuardTrace
from server.engines.grammars import KEPT, require_bounded
from server.engines.options import EmbeddedOptions, VllmOptions
from server.engines.request import EngineRequest, Message, Sampling, ToolPlan
from server.engines.stream import AnswerStream
from server.engines.template import template_message, template_tool
from server.engines.text import OthersOpenings, TokenTexts
from server.engines.tools import Tool, ToolUse

MAX_BAD_WORDS = 128
"""As in vLLM: each is looked for at every token."""


@dataclass(frozen=True)
class Offer:
    """An artifact that may take a guard's place, where it was read, and the guard it makes."""

    entry: LoadedGuard
    source: ArtifactPath
    info: GuardInfo


class GuardedEngine(ABC):
    """Reads the artifacts. A subclass runs the model; it sets what is declared here before it starts."""

    _codec: TextCodec
    _identity: ModelIdentity
    _vocabulary: int
    _max_tokens: int
    _capacity: int
    """Most requests at a time, waiting ones included."""
    _rules: Mapping[str, Rule]
    """Each guard's default."""
    _facts: Mapping[str, GuardFacts]

    def __init__(self, options: EmbeddedOptions | VllmOptions, *, verifiable: bool = True) -> None:
        """`verifiable` as `read_guards` has it. Raises ArtifactError, SigningKeyError, or AttachError for guards that
        cannot be served together.
        """
        self._trusted = trusted_by(options.trusted_key_files)
        self._guards = read_guards(options.artifacts, verifiable=verifiable, trusted=self._trusted)
        self._beside = beside({name: entry.bound for name, entry in self._guards.items()})
        self._sources = dict(zip(self._guards, options.artifacts, strict=True))
        self._digests = None if options.rehash else DigestCache()
        self._offered: Offer | None = None
        self._accept_template = options.accept_template
        self._whole = options.judge == "conversation"
        """Guards over spans judge a conversation as one message."""
        self._streams: dict[str, AnswerStream] = {}
        self._info: EngineInfo | None = None
        self._probes = 0
        self._canary_room: dict[str, float] = {}
        """By guard, of the last verification."""
        self._encoded_words = lru_cache(maxsize=KEPT)(self._encode_words)

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineStoppedError("the engine has not started")
        return self._info

    @cached_property
    def _token_texts(self) -> TokenTexts:
        return TokenTexts(self._codec.tokenizer)

    @cached_property
    def _others(self) -> OthersOpenings:
        """What ends an answer that guards judge. Without any, it may go on, as with `ignore_eos`."""
        return OthersOpenings(self._codec.openings if self._guards else ())

    @abstractmethod
    def healthy(self) -> bool:
        """Whether the loop runs."""

    @abstractmethod
    def submit(self, request: EngineRequest) -> AnswerStream:
        """See `Engine.submit`."""

    @abstractmethod
    def how(self) -> Mapping[str, str]:
        """How passes are run, by what is told: graphs, compilation, runner. After the start."""

    def metrics(self) -> Iterable[Metric]:
        room = GaugeMetricFamily(
            "skillguard_canary_margin_ratio",
            "Share of the allowed drift that no canary used up in the last verification: 1 as calibrated, 0 the edge.",
            labels=("guard",),
        )
        for name, left in self._canary_room.items():
            room.add_metric((name,), left)
        return (room,)

    async def offer(self, name: str, source: ArtifactPath | None) -> GuardInfo:
        self._offered = None
        own = self._sources[name]
        if source is not None and own.digest is not None and source.digest is None:
            raise UntrustedArtifactError(
                f"guard {name!r} is pinned to a digest, so what takes its place has to be: give {source}@sha256:DIGEST "
                "with the digest that `skillguard inspect` prints"
            )
        offered = await asyncio.to_thread(self._read_offer, name, source or own)
        await self._admit_offer(offered)
        self._offered = offered
        return offered.info

    def _read_offer(self, name: str, source: ArtifactPath) -> Offer:
        """Raises ArtifactError, or AttachError where too many would change what one guard reads."""
        (read,) = read_guards([source], trusted=self._trusted).values()
        entry = replace(read, artifact=replace(read.artifact, name=name))  # whatever its folder is called
        refuse_mismatch(entry.artifact, self._identity)
        among = beside({each: of.bound for each, of in {**self._guards, name: entry}.items()})
        return Offer(entry, source, self._described(entry, among))

    def _described(self, entry: LoadedGuard, among: Mapping[str, Beside]) -> GuardInfo:
        own = among[entry.artifact.name]
        return describe(entry, self._codec, accept_template=self._accept_template, beside=own)

    @abstractmethod
    async def _admit_offer(self, offered: Offer) -> None:
        """Raises SkillguardError where a running model cannot take it."""

    @abstractmethod
    async def _install(self, guards: Mapping[str, LoadedGuard]) -> None:
        """Has these guards run in the place of those before, and nothing read what those kept; see `Engine.exchange`.

        `_take_guards` is its last step.
        """

    async def exchange(self) -> None:
        offered = self._offered
        assert offered is not None, "nothing is exchanged that was not offered"
        if self._streams:
            raise EngineBusyError(f"got {len(self._streams)} running requests, wanted none: guards are not exchanged")
        name, info = offered.info.name, self.info
        old = Offer(self._guards[name], self._sources[name], next(of for of in info.guards if of.name == name))
        await self._install({**self._guards, name: offered.entry})
        self._sources[name], self._offered = offered.source, old
        shown = [offered.info if of.name == name else of for of in info.guards]
        self._info = replace(info, guards=tuple(replace(of, beside=self._beside[of.name]) for of in shown))

    async def verify(self) -> Mapping[str, str | None]:
        result: dict[str, str | None] = {}
        for guard in self.info.guards:
            if guard.template is TemplateState.CHANGED:
                result[guard.name] = (
                    f"{guard.template_difference}: the chat template or the tokenizer is not the calibrated one; "
                    "calibrate again with it, or take it with --accept-template"
                )
            else:
                result[guard.name] = await self._disagreement(guard.name)
        return result

    async def _disagreement(self, name: str) -> str | None:
        """None where the live engine gives every canary's scores again, else a sentence about the first other one.

        With all off that change what it reads, the scores are the calibrated ones. With any of them on they move for a
        good reason, and the verdicts are. All other guards stay on: they change nothing that it reads.
        """
        entry, among = self._guards[name], self._beside[name]
        manifest, kind, drift = entry.artifact.manifest, entry.method.kind, entry.method.drift
        self._canary_room.pop(name, None)
        rooms = []
        for off in among.sets_off():
            policy, alone = Policy({each: Rule(GuardMode.OFF) for each in off}), off == {*among.changed_by}
            for index, canary in enumerate(manifest.canaries):
                reading, scores = (await self.read(canary.token_ids, f"canary-{name}-{index}", policy))[name]
                trouble = disagreement(
                    canary, reading, scores, dtype=manifest.model.dtype, kind=kind, drift=drift, alone=alone
                )
                if trouble is not None:
                    return f"canary {index}{switched(among.changed_by, off)}: {trouble}"
                if alone:
                    rooms.append(room_left(canary, scores, dtype=manifest.model.dtype, drift=drift))
        if rooms:
            self._canary_room[name] = min(rooms)
        return None

    async def read(
        self, prompt_token_ids: tuple[int, ...], request_id: str, policy: Policy = NO_RULES
    ) -> Mapping[str, GuardReading]:
        """One forward pass over a prompt: every guard's reading at its last token, and the score of each part.

        Not for callers: see `EngineRequest.proof`.
        """
        answer = await self._probe(prompt_token_ids, request_id, policy, proof=True)
        return {name: answer.prompt_parts.get(name, (Reading.MISSING, ())) for name in self._guards}

    async def check(
        self, prompt_token_ids: tuple[int, ...], request_id: str, policy: Policy = NO_RULES, *, tenant: str = ""
    ) -> tuple[GuardScore, ...]:
        answer = await self._probe(prompt_token_ids, request_id, policy, tenant=tenant)
        _require_read(answer)
        return answer.prompt_scores

    async def trace(
        self, prompt_token_ids: tuple[int, ...], request_id: str, policy: Policy = NO_RULES, *, tenant: str = ""
    ) -> tuple[GuardTrace, ...]:
        rules, detecting = policy.over(self._rules).rules, [n for n, fact in self._facts.items() if fact.unit is None]
        # vLLM's worker tells of places where something fires: under this tau, of all.
        telling = Policy({n: replace(rule, taus=(LARGEST,) * len(rule.taus)) for n, rule in rules.items()})
        answer = await self._probe(prompt_token_ids, request_id, telling, tenant=tenant, keeps_places=True)
        _require_read(answer)
        places = [*(answer.places.get(at, {}) for at in range(len(prompt_token_ids) - 1)), answer.prompt_parts]
        if any(name not in each for each in places for name in detecting):
            raise GuardReadingError("the prompt was not read at each of its tokens")
        turns = await asyncio.to_thread(turns_of, prompt_token_ids, self._codec.openings, whole=self._whole)
        return tuple(
            GuardTrace(
                name, trace(self._facts[name].parts, rules[name].taus, [each[name][1] for each in places], turns)
            )
            for name in detecting
        )

    async def _probe(
        self,
        token_ids: tuple[int, ...],
        request_id: str,
        policy: Policy = NO_RULES,
        *,
        tenant: str = "",
        keeps_places: bool = False,
        proof: bool = False,
    ) -> AnswerState:
        """One forward pass over a prompt under a policy's taus, in shadow mode; what it draws is thrown away."""
        rules = policy.over(self._rules).rules  # an intervention that is off stays so: the caller gets that model
        watching = {n: replace(rule, mode=GuardMode.SHADOW) for n, rule in rules.items() if self._facts[n].unit is None}
        shadow = Policy({**rules, **watching})
        self._probes += 1  # a probe of the same name may still be on its way out
        request_id = f"{request_id}-{self._probes}"
        finish = None
        sampling = Sampling(max_tokens=1, temperature=0, prompt_logprobs=0 if keeps_places else None)
        stream = self.submit(
            EngineRequest(
                request_id, token_ids, sampling, shadow, keeps_places=keeps_places, proof=proof, tenant=tenant
            )
        )
        answer = stream.answer
        try:
            async for event in stream:
                if isinstance(event, Finish):
                    finish = event
        finally:
            await stream.aclose()
        if finish is None or (finish.reason is FinishReason.ERROR and answer.error is None):
            raise EngineError(f"the forward pass failed: {finish.error if finish else 'no result'}")
        return answer

    @abstractmethod
    async def start(self) -> None:
        """See `Engine.start`."""

    @abstractmethod
    async def stop(self) -> None:
        """See `Engine.stop`."""

    def encode_text(self, text: str, *, opened: bool = True) -> tuple[int, ...]:
        return self._codec.encode_text(text, opened=opened)

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        variables: Mapping[str, object] = NO_VARIABLES,
        *,
        answered: bool = True,
    ) -> tuple[int, ...]:
        said, shown = [*map(template_message, messages)], [*map(template_tool, tools)]
        encode = partial(self._codec.encode_chat, said, shown, answered=answered)
        try:
            self._codec.chat.require_free(variables)
            ids = encode(variables)
            usual = encode() if variables and self._guards and not self._accept_template else ids
        except PromptRefusedError as error:
            raise PromptError(str(error)) from error
        if ids != usual:
            raise UnsupportedOptionError(
                f"'chat_template_kwargs' ({', '.join(sorted(variables))}): the chat template would write what guards "
                "were not calibrated for; leave it out. The operator's --chat-template-kwargs holds for every request.",
                "chat_template_kwargs",
            )
        return ids

    def texts(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        self._require_known(token_ids)
        return tuple(self._token_texts(token)[0] for token in token_ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        self._require_known(token_ids)
        return self._codec.decode(token_ids)

    def spell(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        self._require_known(token_ids)
        return self._codec.spell(token_ids)

    def plan_tools(self, use: ToolUse) -> ToolPlan:
        raise UnsupportedOptionError(f"The {self.info.engine} engine does not honour 'tools'; leave it out.", "tools")

    def prepare(self, sampling: Sampling) -> None:
        """See `Engine.prepare`."""
        if sampling.min_tokens > sampling.max_tokens:
            raise InvalidOptionError(
                f"got {sampling.min_tokens}, wanted at most the token limit, {sampling.max_tokens}", "min_tokens"
            )
        for option in ("logit_bias", "allowed_token_ids", "stop_token_ids"):
            if wrong := [token for token in getattr(sampling, option) if not 0 <= token < self._vocabulary]:
                raise InvalidOptionError(
                    f"got token id {wrong[0]}, wanted ids below the vocabulary's {self._vocabulary}", option
                )
        self._bad_word_ids(sampling)
        if sampling.grammar is not None:
            require_bounded(sampling.grammar)
            self._require_grammar(sampling)

    @abstractmethod
    def _require_grammar(self, sampling: Sampling) -> None:
        """Raises InvalidOptionError where this engine cannot keep the grammar, which is not None."""

    def _bad_word_ids(self, sampling: Sampling) -> tuple[tuple[int, ...], ...]:
        """The tokens of each bad word at an answer's start and after a space, as vLLM takes them.

        Raises InvalidOptionError for a word without tokens, or for more of them than MAX_BAD_WORDS.
        """
        _require_few(len(sampling.bad_words))  # before any is encoded
        return self._encoded_words(sampling.bad_words)

    def _encode_words(self, words: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        found: list[tuple[int, ...]] = []
        for word in words:
            plain, spaced = (self._codec.encode_part(space + word.lstrip()) for space in ("", " "))
            if not plain:
                raise InvalidOptionError("every word should have at least one token", "bad_words")
            found.append(plain)
            if spaced and spaced[0] != plain[0] and len(spaced) == len(plain):
                found.append(spaced)
        _require_few(len(found))
        return tuple(found)

    def _require_known(self, token_ids: Sequence[int]) -> None:
        wrong = [token for token in token_ids if not 0 <= token < self._vocabulary]
        if wrong:
            raise PromptError(f"got token id {wrong[0]}, wanted ids below the vocabulary's {self._vocabulary}")

    def _admit(self, request: EngineRequest) -> EngineRequest:
        """The request with a rule for every guard. Raises what `Engine.submit` raises for one that cannot be run."""
        if not self.healthy():
            raise EngineStoppedError("the engine has stopped")
        prompt = len(request.prompt_token_ids)
        if prompt == 0:
            raise PromptError("got an empty prompt, wanted at least one token")
        self._require_known(request.prompt_token_ids)
        if prompt + request.sampling.max_tokens > self._max_tokens:
            raise PromptTooLongError(
                f"got {prompt} prompt tokens and max_tokens {request.sampling.max_tokens}, together "
                f"{prompt + request.sampling.max_tokens}; wanted at most {self._max_tokens}: shorten one of them"
            )
        if len(self._streams) >= self._capacity and not request.proof:
            raise EngineBusyError(f"got {self._capacity} requests already, the queue is full: try again")
        if request.request_id in self._streams:
            raise EngineError(f"request id {request.request_id!r} is in use")
        self.prepare(request.sampling)
        return replace(request, policy=request.policy.over(self._rules))

    def _describe_guards(self) -> tuple[GuardInfo, ...]:
        """Every guard as it is shown. Runs the chat template, which is the model's program: not on the event loop."""
        return tuple(self._described(entry, self._beside) for entry in self._guards.values())

    def _take_guards(self, guards: Mapping[str, LoadedGuard], bound: Mapping[str, Bound]) -> None:
        """These run from now on, and this is what judging an answer needs to know of them."""
        self._guards, self._beside = dict(guards), beside(bound)
        self._rules = default_rules(bound, {name: entry.guard.scope for name, entry in self._guards.items()})
        self._facts = {
            name: GuardFacts(
                entry.artifact.manifest.skill,
                entry.method.name,
                bound[name].parts,
                None if (health := bound[name].health) is None else health.unit,
                entry.artifact.digest,
            )
            for name, entry in self._guards.items()
        }


def _require_few(bad_words: int) -> None:
    if bad_words > MAX_BAD_WORDS:
        raise InvalidOptionError(
            f"got {bad_words} words, with and without a space; wanted at most {MAX_BAD_WORDS}", "bad_words"
        )


def _require_read(answer: AnswerState) -> None:
    """Raises GuardReadingError where a guard gave no valid reading of a prompt, EngineError where the pass failed."""
    if not answer.verified:
        raise GuardReadingError(f"the prompt was not read: {answer.error}")
    if answer.error is not None:
        raise EngineError(answer.error)
