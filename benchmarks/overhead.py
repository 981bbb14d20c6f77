"""What guards cost: guarded against unguarded, alternating in one run.

    python -m benchmarks.overhead [--engine embedded] [--rows NAME ...] [--many] [--rounds N] [--eager]
        [--dtype bfloat16] [--work DIR]

Unguarded is vLLM itself: its AsyncLLM with its own worker and scheduler; or, with `--engine embedded`, our embedded
engine without a guard, on a GPU where there is one. Guarded is our engine with guards that never fire, so that both do
the same work. Both run at the same time with the same flags, on a Llama of random weights that is written first, and
are asked in turns, ABBA, while the other one idles: the same random prompts at once, greedily, each read to its end as
text deltas, through AsyncLLM.generate (detokenised by vLLM) there and VllmEngine.submit (detokenised by us) here.
`ratio` is the median over pairs of rounds of guarded over unguarded tokens a second, drawn ones where the workload
decodes and prompt tokens where it prefills; `low` and `high` bound that median with 95 % (bootstrap). `same` is the
like between neighbouring rounds of the unguarded engine: the noise, 1 with none.

Each row is kept, and those of the same settings, commit and versions are not measured again, so that a stopped run goes
on; `--rows` measures some. Once all are there, the result is written.

`--many` measures nothing but our engine with 256 guards at one place beside the same engine with one there. That is
kept as `results/overhead.many.json`.

`abstained` is the time from asking to a refusal by a guard that always fires, over the unguarded time to the first
token, one request at a time. The last line printed is one JSON object. `results/overhead.json` is vLLM's,
`results/overhead.embedded.json` the embedded engine's.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.report import environment, keep, kept, publish
from benchmarks.synthetic import (
    ALWAYS,
    NEVER,
    VOCABULARY,
    build_model,
    cubes,
    lunar,
    neuron_adjust,
    pruning,
    rmu,
    save,
    spans,
)
from guards.artifact.manifest import ModelIdentity
from guards.contract.guard import Guard
from guards.core.policy import Policy
from guards.inside.transformers.loading import DTYPES
from server.engines.base import NO_RULES
from server.engines.events import Chunk, Finish, FinishReason
from server.engines.options import EmbeddedOptions, VllmOptions
from server.engines.request import EngineRequest, Sampling

SETTLE_SECONDS = 1.3
"""vLLM's idle workers keep polling for a second after their last step, which would slow the other engine's round."""
RESAMPLES = 2000
FIRES = "always fires"
ROWS = (
    "none",
    "1 cube, last layer",
    "256 cubes, last layer",
    "16 cubes, every layer",
    "1 over spans, 4 layers",
    "1 over spans, 1 layer",
    "256 over spans, 1 layer",
    "neuron adjust 3 %",
    "selective pruning 3 %",
    "rank one, 1 layer",
    "rank 16, 3 layers",
    FIRES,
)
MANY = {"256 over spans, 1 layer": "1 over spans, 1 layer", "256 cubes, last layer": "1 cube, last layer"}
"""Rows of many guards at one place, and of one there."""


@dataclass(frozen=True)
class Workload:
    """So many prompts at once, so long, with so many tokens drawn for each."""

    name: str
    prompts: int
    prompt_tokens: int
    drawn: int

    @property
    def tokens(self) -> int:
        """What is counted in tokens a second."""
        return self.prompts * (self.drawn if self.drawn > 1 else self.prompt_tokens)


DECODE = Workload("decode", 8, 16, 64)
PREFILL = Workload("prefill", 4, 256, 1)
ONE = Workload("one request", 1, 64, 1)

Ask = Callable[[Workload, int], Awaitable[float]]
"""Sends a workload's prompts, made from a seed, and returns the seconds until the last answer's end."""


def prompts(load: Workload, seed: int) -> list[tuple[int, ...]]:
    """Random prompts, the same for a seed; nothing is in a prefix cache yet."""
    source = random.Random(seed)
    return [tuple(source.randrange(300, VOCABULARY) for _ in range(load.prompt_tokens)) for _ in range(load.prompts)]


def vllm_itself(llm: Any) -> Ask:
    """AsyncLLM, asked for text deltas."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    async def one(prompt: tuple[int, ...], drawn: int, name: str) -> None:
        options = SamplingParams(max_tokens=drawn, temperature=0, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        tokens = 0
        async for output in llm.generate(tokens_input(list(prompt)), options, name):
            tokens += len(output.outputs[0].token_ids)
        assert tokens == drawn

    async def ask(load: Workload, seed: int) -> float:
        asked = prompts(load, seed)
        started = time.perf_counter()
        await asyncio.gather(*(one(prompt, load.drawn, f"{seed}-{i}") for i, prompt in enumerate(asked)))
        return time.perf_counter() - started

    return ask


def ours(engine: Any, wanted: FinishReason, policy: Policy = NO_RULES) -> Ask:
    """Our engine; every answer must end as `wanted`."""

    async def one(prompt: tuple[int, ...], drawn: int, name: str) -> None:
        tokens, finish = 0, None
        sampling = Sampling(drawn, temperature=0, ignore_eos=True)
        async for event in engine.submit(EngineRequest(name, prompt, sampling, policy)):
            if isinstance(event, Chunk):
                tokens += event.tokens
            else:
                finish = event
        assert isinstance(finish, Finish)
        assert finish.reason is wanted, finish
        assert tokens == (drawn if wanted is FinishReason.LENGTH else 0)

    async def ask(load: Workload, seed: int) -> float:
        asked = prompts(load, seed)
        started = time.perf_counter()
        await asyncio.gather(*(one(prompt, load.drawn, f"{seed}-{i}") for i, prompt in enumerate(asked)))
        return time.perf_counter() - started

    return ask


def interval(ratios: Sequence[float]) -> dict[str, float]:
    """The median with its 95 % bootstrap interval."""
    values = np.asarray(ratios)
    drawn = np.median(np.random.default_rng(0).choice(values, (RESAMPLES, len(values))), axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"ratio": round(median(ratios), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


async def alternate(plain: Ask, guarded: Ask, load: Workload, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of every round of both, in order. The first pair warms up and is dropped."""
    seconds: dict[Ask, list[float]] = {plain: [], guarded: []}
    last = None
    for pair in range(rounds + 1):
        seed = random.randrange(1 << 40)  # never one asked before, whose prompts one engine may still hold
        for ask in (plain, guarded) if pair % 2 else (guarded, plain):
            if ask is not last:
                await asyncio.sleep(SETTLE_SECONDS)
            last = ask
            seconds[ask].append(await ask(load, seed))
    return seconds[plain][1:], seconds[guarded][1:]


def summarise(load: Workload, plain: Sequence[float], guarded: Sequence[float]) -> dict[str, Any]:
    """One row's figures from the seconds of paired rounds."""
    same = [first / second for first, second in pairwise(plain)]
    return {
        **interval([p / g for p, g in zip(plain, guarded, strict=True)]),
        "plain_tokens_per_second": round(load.tokens / median(plain), 1),
        "guarded_tokens_per_second": round(load.tokens / median(guarded), 1),
        "same": [round(float(value), 4) for value in np.quantile(same, (0.25, 0.75))] if same else [],
        "rounds": len(plain),
    }


def _guards(identity: ModelIdentity) -> dict[str, tuple[int, Callable[[int], Guard]]]:
    """By row how many guards it has, and what makes one of a seed."""
    every, last = list(range(identity.layers)), [identity.layers - 1]
    return {
        "none": (0, lambda seed: cubes(identity, last, NEVER, seed)),
        "1 cube, last layer": (1, lambda seed: cubes(identity, last, NEVER, seed)),
        "256 cubes, last layer": (256, lambda seed: cubes(identity, last, NEVER, seed)),
        "16 cubes, every layer": (16, lambda seed: cubes(identity, every, NEVER, seed)),
        "1 over spans, 4 layers": (1, lambda seed: spans(identity, every[-4:], seed)),
        "1 over spans, 1 layer": (1, lambda seed: spans(identity, last, seed)),
        "256 over spans, 1 layer": (256, lambda seed: spans(identity, last, seed)),
        "neuron adjust 3 %": (1, lambda _: neuron_adjust(identity)),
        "selective pruning 3 %": (1, lambda _: pruning(identity)),
        "rank one, 1 layer": (1, lambda _: lunar(identity)),
        "rank 16, 3 layers": (1, lambda _: rmu(identity, 16)),
        FIRES: (1, lambda seed: cubes(identity, last, ALWAYS, seed)),
    }


def write_guards(folder: Path, identity: ModelIdentity, rows: Collection[str]) -> dict[str, list[Path]]:
    """The artifacts of these rows."""
    made = _guards(identity)
    return {
        name: [save(folder / f"row{place}-{seed}", made[name][1](seed), identity) for seed in range(made[name][0])]
        for place, name in enumerate(made)
        if name in rows
    }


@asynccontextmanager
async def _started(engine: Any) -> AsyncIterator[Any]:
    """One of our engines, stopped at the end."""
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()


class Embedded:
    """The embedded engine, with guards and without, of any model whose vocabulary holds the prompts'."""

    def __init__(self, model: Path, dtype: str) -> None:
        self._model, self._dtype = str(model), dtype

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[Ask]:
        """Without a guard."""
        async with _started(self._engine(())) as engine:
            yield ours(engine, FinishReason.LENGTH)

    @asynccontextmanager
    async def guarded(
        self, artifacts: Sequence[Path], wanted: FinishReason, policy: Policy = NO_RULES
    ) -> AsyncIterator[Ask]:
        """With guards, under a policy."""
        async with _started(self._engine(artifacts)) as engine:
            yield ours(engine, wanted, policy)

    def _engine(self, artifacts: Sequence[Path]) -> Any:
        from server.engines.embedded.engine import EmbeddedEngine

        return EmbeddedEngine(
            EmbeddedOptions.model_validate(
                {"model": self._model, "artifacts": artifacts, "dtype": self._dtype, "max_batch_tokens": 1024}
            )
        )


class _Vllm:
    """vLLM itself, and our engine on it, under the same flags."""

    def __init__(self, model: Path, dtype: str, *, eager: bool) -> None:
        flags = ["--dtype", dtype, "--max-model-len", "512", "--kv-cache-memory-bytes", str(1 << 28)]
        self._model, self._flags = str(model), (*flags, *(("--enforce-eager",) if eager else ()))

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[Ask]:
        """vLLM with its own worker and scheduler."""
        from vllm.v1.engine.async_llm import AsyncLLM

        from server.engines.vllm.config import parse_flags

        config = parse_flags(VllmOptions(model=self._model, flags=self._flags)).create_engine_config()
        llm = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
        try:
            yield vllm_itself(llm)
        finally:
            llm.shutdown()

    @asynccontextmanager
    async def guarded(self, artifacts: Sequence[Path], wanted: FinishReason) -> AsyncIterator[Ask]:
        """Our engine."""
        from server.engines.vllm.engine import VllmEngine

        options = VllmOptions(model=self._model, artifacts=tuple(artifacts), flags=self._flags)
        async with _started(VllmEngine(options)) as engine:
            yield ours(engine, wanted)


async def many(side: Any, artifacts: Mapping[str, Sequence[Path]], rounds: int) -> list[dict[str, Any]]:
    """A row for each kind of guard and workload: many at one place, over one there."""
    rows: list[dict[str, Any]] = []
    for name, one in MANY.items():
        async with (
            side.guarded(artifacts[one], FinishReason.LENGTH) as plain,
            side.guarded(artifacts[name], FinishReason.LENGTH) as guarded,
        ):
            for load in (DECODE, PREFILL):
                figures = summarise(load, *await alternate(plain, guarded, load, rounds))
                rows.append({"guards": name, "against": one, "workload": load.name, **figures})
                print(rows[-1], flush=True)
    return rows


async def one_row(side: Any, plain: Ask, name: str, artifacts: Sequence[Path], rounds: int) -> list[dict[str, Any]]:
    """What one row's guards cost: of each workload, or of guards that always fire how soon they refuse."""
    fires = name == FIRES
    async with side.guarded(artifacts, FinishReason.ABSTAIN if fires else FinishReason.LENGTH) as guarded:
        if fires:
            seconds = await alternate(plain, guarded, ONE, 3 * rounds)
            first, refused = (round(1000 * median(each), 2) for each in seconds)
            ratios = interval([g / p for p, g in zip(*seconds, strict=True)])
            return [{"guards": name, **ratios, "first_token_ms": first, "abstained_ms": refused}]
        return [
            {"guards": name, "workload": load.name, **summarise(load, *await alternate(plain, guarded, load, rounds))}
            for load in (DECODE, PREFILL)
        ]


async def measure(args: argparse.Namespace, folder: Path) -> None:
    """Starts the unguarded engine once and the guarded one once for every row that is not kept yet.

    Publishes when all rows are there.
    """
    model = folder / "model"
    identity = build_model(model, layers=args.layers, d_model=args.d_model, d_ff=args.d_ff, dtype=args.dtype)
    embedded = args.engine == "embedded"
    side = Embedded(model, args.dtype) if embedded else _Vllm(model, args.dtype, eager=args.eager)
    shape = identity.model_dump(include={"architecture", "layers", "d_model", "d_ff", "dtype"})
    if args.many:
        artifacts = write_guards(folder / "guards", identity, [*MANY, *MANY.values()])
        publish("overhead.many", await many(side, artifacts, args.rounds), model=shape, engine=args.engine)
        return
    name, how = "overhead", {"mode": "eager" if args.eager else "compiled"}
    if embedded:
        name, how = "overhead.embedded", {}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found = {"model": shape, "device": device, **how}
    of = {**found, "rounds": args.rounds, **environment()}
    others = [row for row in kept(name) if row["of"] != of]
    rows = [row for row in kept(name) if row["of"] == of]
    left = [row for row in args.rows if row not in {each["guards"] for each in rows}]
    artifacts = write_guards(folder / "guards", identity, left)
    if left:
        async with side.plain() as plain:
            for row in left:
                rows += [{"of": of, **each} for each in await one_row(side, plain, row, artifacts[row], args.rounds)]
                print(row, rows[-1], flush=True)
                keep(name, others + rows)
    done = [{key: value for key, value in row.items() if key != "of"} for row in rows]
    if {row["guards"] for row in done} < set(ROWS):
        print(json.dumps({"rows": done, **found}))
        return
    done.sort(key=lambda row: ROWS.index(row["guards"]))
    publish(name, [row for row in done if row["guards"] != FIRES], abstained=done[-1], **found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("vllm", "embedded"), default="vllm")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--many", action="store_true", help="256 guards at one place beside one, and nothing else")
    parser.add_argument("--rounds", type=int, default=12, help="pairs of rounds (three times as many of one request)")
    parser.add_argument("--eager", action="store_true", help="without vLLM's compilation")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--d-ff", type=int, default=2816)
    parser.add_argument("--work", type=Path, help="folder for the model and its guards (default: a temporary one)")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        asyncio.run(measure(args, args.work or Path(scratch)))


if __name__ == "__main__":
    main()
