"""What tests prove of an engine on CPUs, asked of the one that runs here."""

import asyncio
import warnings
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from guards.artifact.manifest import Canary
from guards.core.verdict import GuardKind, Reading, Stage
from guards.methods.loaded import LoadedGuard
from server.doctor.findings import Finding, Outcome
from server.engines.errors import EngineError
from server.engines.events import Chunk, Finish, FinishReason
from server.engines.guarded import GuardedEngine
from server.engines.request import EngineRequest, Grammar, GrammarKind, Sampling

T = TypeVar("T")

ANSWER_SECONDS = 300.0
"""For an answer, which takes some seconds where a large model runs on a CPU: of an engine that hangs, that is the
finding."""
_AT_A_TIME = 32
_COPIES = 3
"""Of each canary at once: so batches are mixed, prompts are cut into chunks, and prefixes are found in the cache."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0},
    "hot": {"temperature": 2, "seed": 1},
    "log-probabilities": {"logprobs": 5, "temperature": 0},
    "log-probabilities of the prompt": {"prompt_logprobs": 2, "temperature": 0},
    "nucleus": {"top_p": 0.1, "top_k": 1, "min_p": 0.5},
    "penalties": {"frequency_penalty": 2, "presence_penalty": -2, "repetition_penalty": 2},
    "bias": {"logit_bias": {5: 100.0}},
    "allowed tokens": {"allowed_token_ids": (5, 6, 7)},
    "bad words": {"bad_words": ("a", "1")},
    "no early end": {"min_tokens": 8, "ignore_eos": True},
    "stop string": {"stop": ("a", "e"), "include_stop": True},
    "stop token": {"stop_token_ids": (5,), "include_stop": True},
    "grammar": {"grammar": Grammar(GrammarKind.REGEX, "[0-9]+")},
    "choice": {"grammar": Grammar(GrammarKind.CHOICE, '["yes", "no"]')},
}
"""Of `Sampling`, and none of them may let a token of a refused question out."""


@dataclass(frozen=True)
class Known:
    """A canary, and the guard it belongs to."""

    guard: str
    index: int
    canary: Canary

    @property
    def name(self) -> str:
        return f"{self.guard}-{self.index}"


def known(guards: Mapping[str, LoadedGuard]) -> list[Known]:
    """Every canary of every detector."""
    return [
        Known(name, index, canary)
        for name, entry in guards.items()
        if entry.method.kind is GuardKind.DETECTOR
        for index, canary in enumerate(entry.artifact.manifest.canaries)
    ]


def finding(name: str, wrong: Sequence[str], proved: str) -> Finding:
    if wrong:
        return Finding(name, Outcome.REFUTED, f"{len(wrong)} wrong, the first: {wrong[0]}")
    return Finding(name, Outcome.PROVED, proved)


async def in_time(work: Awaitable[T], seconds: float | None = None) -> T:
    """What comes of it. Raises TimeoutError where nothing does."""
    seconds = ANSWER_SECONDS if seconds is None else seconds
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError as error:
        raise TimeoutError(f"the engine gave no answer within {seconds:g} seconds: it hangs") from error


async def canaries(engine: GuardedEngine, count: int) -> Iterator[Finding]:
    """As at every start: each guard's own scores, out of the live engine, one after another, so many in all."""
    found = await in_time(engine.verify(), ANSWER_SECONDS * max(1, count))
    return iter(
        Finding(f"canaries of {name}", Outcome.PROVED, "the scores are the calibrated ones")
        if reason is None
        else Finding(f"canaries of {name}", Outcome.REFUTED, reason)
        for name, reason in found.items()
    )


async def alone(engine: GuardedEngine, of: Sequence[Known]) -> tuple[Finding, dict[str, Reading]]:
    """Each canary by itself: what must fire does, and what must not does not."""
    read = {each.name: await _reading(engine, each) for each in of}
    wanted = {each.name: Reading.INSIDE if each.canary.fires else Reading.OUTSIDE for each in of}
    wrong = [
        f"{name} reads {got.name}, wanted {wanted[name].name}" for name, got in read.items() if got != wanted[name]
    ]
    fire = sum(each.canary.fires for each in of)
    return finding("verdicts, one at a time", wrong, f"{fire} prompts fire and {len(of) - fire} do not"), read


async def crowd(engine: GuardedEngine, of: Sequence[Known], before: Mapping[str, Reading]) -> Finding:
    """All at once and several times: batches, chunks and cached prefixes change no verdict."""
    gate = asyncio.Semaphore(_AT_A_TIME)

    async def one(each: Known) -> Reading:
        async with gate:
            return await _reading(engine, each)

    many = [each for each in of for _ in range(_COPIES)]
    read = await asyncio.gather(*map(one, many))
    wrong = [
        f"{each.name} reads {got.name}, alone {before[each.name].name}"
        for each, got in zip(many, read, strict=True)
        if got != before[each.name]
    ]
    return finding("verdicts, batched, chunked and cached", wrong, f"{len(many)} prompts as one at a time")


async def _reading(engine: GuardedEngine, each: Known) -> Reading:
    return (await in_time(engine.read(each.canary.token_ids, f"doctor-{each.name}")))[each.guard][0]


async def refusals(engine: GuardedEngine, of: Sequence[Known]) -> Iterator[Finding]:
    """No option lets a token of a refused question out."""
    rules = {guard.name: guard.rule for guard in engine.info.guards}
    asked = [each for each in of if each.canary.fires and Stage.PROMPT.within(rules[each.guard].scope)]
    found, gate = [], asyncio.Semaphore(_AT_A_TIME)

    async def one(each: Known, name: str, options: Mapping[str, Any]) -> str | None:
        async with gate:
            return await _refused(engine, each, name, options)

    for name, options in OPTIONS.items():
        if lacking := options.keys() - engine.info.options - {"temperature"}:
            found.append(Finding(f"refused under {name}", Outcome.SKIPPED, f"no {', '.join(sorted(lacking))} here"))
            continue
        told = await asyncio.gather(*(one(each, name, options) for each in asked))
        wrong = [each for each in told if each is not None]
        found.append(finding(f"refused under {name}", wrong, f"{len(asked)} questions, no token"))
    return iter(found)


async def _refused(engine: GuardedEngine, each: Known, name: str, options: Mapping[str, Any]) -> str | None:
    """What is wrong with the answer to a question that must be refused."""
    try:
        tokens, finish = await in_time(_answer(engine, each, name, Sampling(max_tokens=16, **options)))
    except EngineError as error:
        return f"{each.name}: {error}"
    if tokens or finish.reason is not FinishReason.ABSTAIN:
        return f"{each.name}: {tokens} tokens went out, and the answer ended by {finish.reason}"
    if each.guard not in [hit.score.guard for hit in finish.hits]:
        return f"{each.name}: another guard refused it"
    return None


async def _answer(engine: GuardedEngine, each: Known, name: str, sampling: Sampling) -> tuple[int, Finish]:
    stream = engine.submit(EngineRequest(f"doctor-{each.name}-{name}", each.canary.token_ids, sampling))
    tokens, finish = 0, None
    try:
        async for event in stream:
            if isinstance(event, Chunk):
                tokens += event.tokens
            else:
                finish = event
    finally:
        await stream.aclose()
    assert finish is not None, "a stream ends by a Finish"
    return tokens, finish


async def host_synchronisations(engine: GuardedEngine, each: Known) -> Finding:
    """How often the host waits for the device, by torch's own warnings, over one answer in this process."""
    if not torch.cuda.is_available() or engine.info.engine == "vllm":
        return Finding("host synchronisations", Outcome.SKIPPED, "counted on CUDA, in the embedded engine")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            sampling = Sampling(max_tokens=16, temperature=0, ignore_eos=True)
            tokens, _ = await in_time(_answer(engine, each, "synchronisations", sampling))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    count = sum("synchron" in str(each.message) for each in told)
    return Finding("host synchronisations", Outcome.TOLD, f"{count} over {tokens} tokens")
