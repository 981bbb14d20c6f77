"""The whole examination: the machine, a plain pass, the engine with guards, and the engine without."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from guards.core.verdict import GuardMode, Reading
from guards.errors import SkillguardError
from guards.inside.transformers.loading import load_model
from guards.methods.loaded import LoadedGuard, read_guards
from server.doctor import machine, properties
from server.doctor.findings import Finding, Outcome, Report
from server.doctor.properties import Known
from server.engines.base import Engine, EngineRequest, Finish, Sampling
from server.engines.guarded import GuardedEngine
from server.engines.options import EmbeddedOptions, VllmOptions

Options = EmbeddedOptions | VllmOptions
Create = Callable[[Options], Engine]
_DRAWN, _ROUNDS, _AT_ONCE = 32, 3, 8


async def examine(options: Options, create: Create) -> Report:
    """Nothing is raised for what does not work: that is a finding. Raises ArtifactError."""
    findings = [*machine.versions(), machine.device()]
    guards = read_guards(options.artifacts)
    try:
        await _examine(options, guards, create, findings.append)
    except SkillguardError as error:
        findings.append(Finding("the engine", Outcome.REFUTED, f"{error}"))
    findings.append(machine.memory())
    return Report("vllm" if isinstance(options, VllmOptions) else "embedded", findings)


async def _examine(
    options: Options, guards: Mapping[str, LoadedGuard], create: Create, tell: Callable[[Finding], object]
) -> None:
    of = properties.known(guards)
    plain = await asyncio.to_thread(_plainly, options, guards, of)
    engine = _made(create, options)
    began = time.monotonic()
    await engine.start()
    try:
        info = engine.info
        started = f"{info.engine} {info.engine_version}, {info.architecture} on {info.device} in {info.dtype}"
        tell(
            Finding("start", Outcome.PROVED, f"{started}, {time.monotonic() - began:.1f} s; internals are as relied on")
        )
        for name, fact in engine.how().items():
            tell(Finding(name, Outcome.TOLD, fact))
        for finding in await properties.canaries(engine):
            tell(finding)
        finding, before = await properties.alone(engine, of)
        tell(finding)
        tell(properties.plain_pass(before, plain))
        tell(await properties.crowd(engine, of, before))
        for finding in await properties.refusals(engine, of):
            tell(finding)
        quiet = [each for each in of if not each.canary.fires]
        if quiet:
            tell(await properties.host_synchronisations(engine, quiet[0]))
        guarded = await _speed(engine, of)
    finally:
        await engine.stop()
    bare = _made(create, options.model_copy(update={"artifacts": ()}))
    await bare.start()
    try:
        unguarded = await _speed(bare, of)
    finally:
        await bare.stop()
    ratio = f"{guarded / unguarded:.2f} of the speed without guards ({guarded:.0f} and {unguarded:.0f} tokens a second)"
    tell(Finding("speed", Outcome.TOLD, ratio))


def _made(create: Create, options: Options) -> GuardedEngine:
    engine = create(options)
    assert isinstance(engine, GuardedEngine), "both engines that serve models are"
    return engine


def _plainly(options: Options, guards: Mapping[str, LoadedGuard], of: Sequence[Known]) -> dict[str, Reading]:
    """What each guard reads of its canaries in a pass of transformers, alone and without any engine."""
    given = options if isinstance(options, EmbeddedOptions) else None
    dtype = next(iter(guards.values())).artifact.manifest.model.dtype
    loaded = load_model(options.model, given.device if given else None, dtype)
    read: dict[str, Reading] = {}
    for name, entry in guards.items():
        with loaded.reading(entry.method, entry.guard) as reader:
            read |= {each.name: reader(each.canary.token_ids)[0] for each in of if each.guard == name}
    return read


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
        tokens = sum(await asyncio.gather(*(one(index, round_) for index in range(_AT_ONCE))))
        best = max(best, tokens / (time.perf_counter() - began))
    return best
