"""The whole examination: the machine, a plain pass, the engine with guards, and the engine without."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from guards.core.verdict import GuardMode
from guards.methods.loaded import LoadedGuard, read_guards
from server.doctor import machine, properties
from server.doctor.findings import HANGS, Finding, Outcome, Report, reason
from server.doctor.plain import Plain, compared, read_plainly
from server.doctor.properties import Known, in_time
from server.engines.base import Engine
from server.engines.events import Finish
from server.engines.guarded import GuardedEngine
from server.engines.options import EmbeddedOptions, VllmOptions
from server.engines.request import EngineRequest, Sampling

Options = EmbeddedOptions | VllmOptions
Create = Callable[[Options], Engine]
_DRAWN, _ROUNDS, _AT_ONCE = 32, 3, 8
STOP_SECONDS = 60.0


async def examine(options: Options, create: Create) -> Report:
    """Nothing is raised for what does not work: that is a finding. Raises ArtifactError."""
    findings = [*machine.versions(), machine.device()]
    guards = read_guards(options.artifacts)
    try:
        await _examine(options, guards, create, findings.append)
    except Exception as error:  # of any kind: an accelerator that is out of memory raises its own
        findings.append(Finding("the engine", Outcome.REFUTED, reason(error)))
    findings.append(machine.memory())
    return Report("vllm" if isinstance(options, VllmOptions) else "embedded", findings)


async def _examine(
    options: Options, guards: Mapping[str, LoadedGuard], create: Create, tell: Callable[[Finding], object]
) -> None:
    of = properties.known(guards)
    plain = await read_plainly(options)
    count = sum(len(entry.artifact.manifest.canaries) for entry in guards.values())
    guarded = await _guarded(_made(create, options), of, count, plain, tell)
    tell(await _compared(guarded, _made(create, options.model_copy(update={"artifacts": ()})), of, tell))


async def _compared(
    guarded: float, bare: GuardedEngine, of: Sequence[Known], tell: Callable[[Finding], object]
) -> Finding:
    """The speed with guards over that without. What ails an engine without guards says nothing about them."""
    try:
        await bare.start()
        unguarded = await _speed(bare, of)
    except Exception as error:
        return Finding("speed", Outcome.SKIPPED, f"not compared, without guards: {reason(error)}")
    finally:
        await _stop(bare, tell)
    ratio = f"{guarded / unguarded:.2f} of the speed without guards ({guarded:.0f} and {unguarded:.0f} tokens a second)"
    return Finding("speed", Outcome.TOLD, ratio)


async def _guarded(
    engine: GuardedEngine, of: Sequence[Known], canaries: int, plain: Plain, tell: Callable[[Finding], object]
) -> float:
    """All that is told of an engine with guards, which have so many canaries; its speed in tokens a second."""
    began = time.monotonic()
    try:
        await engine.start()
        info = engine.info
        started = f"{info.engine} {info.engine_version}, {info.architecture} on {info.device} in {info.dtype}"
        tell(
            Finding("start", Outcome.PROVED, f"{started}, {time.monotonic() - began:.1f} s; internals are as relied on")
        )
        for name, fact in engine.how().items():
            tell(Finding(name, Outcome.TOLD, fact))
        for finding in await properties.canaries(engine, canaries):
            tell(finding)
        finding, before = await properties.alone(engine, of)
        tell(finding)
        tell(compared(before, plain))
        tell(await properties.crowd(engine, of, before))
        for finding in await properties.refusals(engine, of):
            tell(finding)
        quiet = [each for each in of if not each.canary.fires]
        if quiet:
            tell(await properties.host_synchronisations(engine, quiet[0]))
        return await _speed(engine, of)
    finally:
        await _stop(engine, tell)


async def _stop(engine: GuardedEngine, tell: Callable[[Finding], object]) -> None:
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await engine.stop()
    except TimeoutError:
        tell(Finding(HANGS, Outcome.REFUTED, f"the engine did not stop within {STOP_SECONDS:g} seconds"))


def _made(create: Create, options: Options) -> GuardedEngine:
    engine = create(options)
    assert isinstance(engine, GuardedEngine), "both engines that serve models are"
    return engine


async def _speed(engine: GuardedEngine, of: Sequence[Known]) -> float:
    """Tokens a second of a few answers at once, the best of some rounds; no guard ends one."""
    rules = {guard.name: guard.rule for guard in engine.info.guards}

    async def one(index: int, round_: int) -> int:
        prompt = of[index % len(of)].canary.token_ids
        sampling = Sampling(max_tokens=_DRAWN, temperature=0, ignore_eos=True)
        policy = EngineRequest("", prompt, sampling).policy.over(rules).in_mode(GuardMode.SHADOW)
        stream = engine.submit(EngineRequest(f"speed-{index}-{round_}", prompt, sampling, policy))
        try:
            return sum([event.completion_tokens async for event in stream if isinstance(event, Finish)])
        finally:
            await stream.aclose()

    best = 0.0
    for round_ in range(_ROUNDS):
        began = time.perf_counter()
        tokens = sum(await in_time(asyncio.gather(*(one(index, round_) for index in range(_AT_ONCE)))))
        best = max(best, tokens / (time.perf_counter() - began))
    return best
