"""A fake engine that plays scripts: no model, no torch, no clock. Shipped, so that whoever builds on the server can
test against what its own tests use.

Tokens are the UTF-8 bytes of the prompt. `server/engines/scripted/scripts.py` has what scripts are made of.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from prometheus_client import Metric

from guards.artifact.pins import ArtifactPath
from guards.core.policy import Policy
from guards.errors import SkillguardError
from server.engines.base import NO_RULES, NO_VARIABLES, EngineInfo, GuardInfo, Load
from server.engines.errors import EngineError, EngineStoppedError, InvalidOptionError, PromptError, PromptTooLongError
from server.engines.events import Event, EventStream, Finish, FinishReason, GuardScore, GuardTrace
from server.engines.request import (
    ALL_OPTIONS,
    EngineRequest,
    Message,
    Sampling,
    SamplingDefaults,
    ToolPlan,
    require_honoured,
)
from server.engines.scripted.scripts import Script, answer, guard, score
from server.engines.scripted.tools import ScriptedToolParser
from server.engines.tools import Tool, ToolChoice, ToolUse


class ScriptedEngine:
    """Implements `Engine`. Its public attributes may be changed while it runs.

    It takes every option, or the `options` it is given, and plays the same whatever they ask for. So it does with
    tools; `server/engines/scripted/tools.py` says how an answer spells calls.
    """

    def __init__(
        self,
        scripts: Sequence[Script] = (Script(answer("Hello", " there", ".")),),
        guards: Sequence[GuardInfo] = (guard(),),
        max_model_tokens: int = 4096,
        options: frozenset[str] = ALL_OPTIONS,
        defaults: SamplingDefaults = SamplingDefaults(),  # noqa: B008
        tool_choices: frozenset[ToolChoice] = frozenset(ToolChoice),
        template_names: frozenset[str] = frozenset({"enable_thinking", "reasoning_effort"}),
    ) -> None:
        self.scripts = list(scripts)
        self.submitted: list[EngineRequest] = []
        self.checked: list[str] = []
        self.traced: list[str] = []
        self.looked_at_for: list[str] = []
        """The tenants whose prompts were checked or traced."""
        self.cancelled: list[str] = []
        """Ids of requests whose events were closed before their Finish."""
        self.scores: tuple[GuardScore, ...] = tuple(score(of) for of in guards)
        """What `check` answers."""
        self.traces: tuple[GuardTrace, ...] = ()
        """What `trace` answers."""
        self.alive = True
        self.refusal: EngineError | None = None
        """Raised by `submit` and `check` where set, such as an EngineBusyError."""
        self.invalid: InvalidOptionError | None = None
        """Raised by `prepare` where set."""
        self.start_error: Exception | None = None
        self.may_start = _already_set()
        self.may_verify = _already_set()
        self.may_check = _already_set()
        """Clear one of these to keep the engine in that state."""
        self.verification: Mapping[str, str | None] = {of.name: None for of in guards}
        self.offers: dict[str, GuardInfo | SkillguardError] = {}
        """By guard, what `offer` gives or raises."""
        self.offered_from: list[ArtifactPath | None] = []
        self.exchanges: list[GuardInfo] = []
        """What took a place, in order."""
        self.queue = Load(running=0, waiting=0)
        self.stops = 0
        self.opens = False
        """Whether a text is opened by a token, 0."""
        self._info = EngineInfo(
            engine="scripted",
            engine_version="1",
            model="scripted",
            architecture="none",
            device="none",
            dtype="none",
            max_model_tokens=max_model_tokens,
            longest_token=1,
            template_sha256=None,
            template_names=template_names,
            guards=tuple(guards),
            options=options,
            defaults=defaults,
            tool_choices=tool_choices,
        )
        self.tool_plan = ToolPlan(ScriptedToolParser)
        """What `plan_tools` answers."""
        self.variables: list[dict[str, object]] = []
        """What the chat template was given, by conversation."""
        self.tool_uses: list[ToolUse] = []

    @property
    def info(self) -> EngineInfo:
        return self._info

    async def start(self) -> None:
        await self.may_start.wait()
        if self.start_error is not None:
            raise self.start_error

    async def stop(self) -> None:
        self.stops += 1
        self.alive = False

    async def offer(self, name: str, source: ArtifactPath | None) -> GuardInfo:
        self.offered_from.append(source)
        offered = self.offers[name]
        if isinstance(offered, SkillguardError):
            raise offered
        self._offered = offered
        return offered

    async def exchange(self) -> None:
        new = self._offered
        (self._offered,) = (of for of in self._info.guards if of.name == new.name)
        self._info = replace(self._info, guards=tuple(new if of.name == new.name else of for of in self._info.guards))
        self.exchanges.append(new)

    async def verify(self) -> Mapping[str, str | None]:
        await self.may_verify.wait()
        return self.verification

    def healthy(self) -> bool:
        return self.alive

    def encode_text(self, text: str, *, opened: bool = True) -> tuple[int, ...]:
        if not text:
            raise PromptError("the prompt is empty")
        return (*([0] * (opened and self.opens)), *text.encode())

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        variables: Mapping[str, object] = NO_VARIABLES,
        *,
        answered: bool = True,
    ) -> tuple[int, ...]:
        self.variables.append(dict(variables))
        shown = "".join(f"tool: {tool.name}\n" for tool in tools)
        opening = "assistant: " if answered else ""
        return self.encode_text(shown + "".join(map(_turn, messages)) + opening, opened=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        self._require_known(token_ids)
        return bytes(token_ids).decode(errors="replace")

    def texts(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.decode([token]) for token in token_ids)

    def spell(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        self._require_known(token_ids)
        return tuple(f"<{token}>" for token in token_ids)

    def plan_tools(self, use: ToolUse) -> ToolPlan:
        self.tool_uses.append(use)
        return self.tool_plan

    def prepare(self, sampling: Sampling) -> None:
        if self.invalid is not None:
            raise self.invalid

    def submit(self, request: EngineRequest) -> EventStream:
        require_honoured(request.sampling, self._info.engine, self._info.options)
        text = self._admit(request.prompt_token_ids, request.sampling.max_tokens)
        script = next((script for script in self.scripts if script.when(text)), None)
        if script is None:
            raise PromptError(f"no script for {text!r}")
        self.submitted.append(request)
        return _Played(script, len(request.prompt_token_ids), lambda: self.cancelled.append(request.request_id))

    async def check(
        self, prompt_token_ids: tuple[int, ...], request_id: str, policy: Policy = NO_RULES, *, tenant: str = ""
    ) -> tuple[GuardScore, ...]:
        self._admit(prompt_token_ids, answer_tokens=0)
        self.checked.append(request_id)
        self.looked_at_for.append(tenant)
        try:
            await self.may_check.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request_id)
            raise
        return self.scores

    async def trace(
        self, prompt_token_ids: tuple[int, ...], request_id: str, policy: Policy = NO_RULES, *, tenant: str = ""
    ) -> tuple[GuardTrace, ...]:
        self._admit(prompt_token_ids, answer_tokens=1)
        self.traced.append(request_id)
        self.looked_at_for.append(tenant)
        return self.traces

    def metrics(self) -> Iterable[Metric]:
        return ()

    def load(self) -> Load:
        return self.queue

    def _require_known(self, token_ids: Sequence[int]) -> None:
        if max(token_ids, default=0) > 255:
            raise PromptError(f"token {max(token_ids)} is not in the vocabulary of 256")

    def _admit(self, prompt_token_ids: tuple[int, ...], answer_tokens: int) -> str:
        if self.refusal is not None:
            raise self.refusal
        if not self.alive:
            raise EngineStoppedError("the engine has stopped")
        self._require_known(prompt_token_ids)
        asked, limit = len(prompt_token_ids) + answer_tokens, self._info.max_model_tokens
        if asked > limit:
            raise PromptTooLongError(f"prompt and answer need {asked} tokens, the model has {limit}")
        return bytes(prompt_token_ids).decode(errors="replace")


class _Played(EventStream):
    """The events of one request. A class, since an async generator that was never begun cannot notice its closing."""

    def __init__(self, script: Script, prompt_tokens: int, on_cancel: Callable[[], None]) -> None:
        self._steps = iter(script.steps)
        self._given_up = script.given_up
        self._prompt_tokens = prompt_tokens
        self._sent_tokens = 0
        self._on_cancel = on_cancel
        self._over = False

    async def __anext__(self) -> Event:
        for step in self._steps:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, Finish):
                self._over = True
                return replace(step, prompt_tokens=self._prompt_tokens)
            else:
                self._sent_tokens += step.tokens
                return step
        self._over = True
        raise StopAsyncIteration

    async def aclose(self) -> Finish | None:
        if self._over:
            return None
        self._over = True
        self._on_cancel()
        known = self._given_up or Finish(FinishReason.GIVEN_UP, 0, self._sent_tokens, verified=True)
        return replace(known, prompt_tokens=self._prompt_tokens)


def _turn(message: Message) -> str:
    calls = "".join(f"[[{call.name}|{call.arguments}]]" for call in message.tool_calls)
    answered = "" if message.tool_call_id is None else f" {message.tool_call_id}"
    return f"{message.role}{answered}: {message.content}{calls}\n"


def _already_set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
