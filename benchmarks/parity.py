"""Whether vLLM's verdicts are the embedded engine's, on real prompts and however vLLM runs the model.

    python -m benchmarks.parity --model DIR --artifacts FOLDER [FOLDER ...] [--prompts N] [--variants NAME ...]
        [--data DIR] [--margin M]

Detectors are served together, and each intervention by itself, since it changes what others read. Prompts are a quarter
each of the test sides of GSM8K, MBPP, MMLU and XQuAD (seven languages in turn; `benchmarks.prompts.splits`), as
`Q: ...\\nA:`.

A verdict of vLLM may differ from the embedded engine's only where the embedded score lies within the margin, relative
to tau: kernels sum in other orders. `within_margin` counts those prompts, `flipped` the verdicts that differ there, and
`disagree` all other verdicts that differ. An intervention has no verdict: what is compared is its reading at the last
token, neurons moved or how far it pushed, and `disagree` counts prompts where that differs by more than a canary's may.
A score's difference is relative to the score, or to tau where that is larger. `cached_tokens` and `preemptions`, by
vLLM's own statistics, show that a variant did what it is named for. `other_text` counts whole greedy answers that
differ. The last line printed is one JSON object, kept as `results/parity.<model>.json`.
"""

import argparse
import asyncio
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.prompts import splits
from benchmarks.prompts.skills import FRAME
from benchmarks.prompts.splits import XQUAD, Split, data_folder
from benchmarks.report import publish
from guards.core.drift import Drift
from guards.core.verdict import GuardKind, GuardMode, Reading
from guards.inside.transformers.loading import load_model
from guards.methods.loaded import read_guards
from guards.model.encoding import TextCodec
from server.engines.base import Engine
from server.engines.events import Finish, FinishReason, GuardScore
from server.engines.options import EmbeddedOptions, VllmOptions
from server.engines.request import EngineRequest, Sampling
from server.policies import default_policy

MARGIN = 1e-3
"""Of tau, in float32: a thousand times its rounding, a hundredth of what separates a canary from tau."""
AT_A_TIME = 64
DRAWN = 128
"""Tokens of an answer, where whole answers are compared."""

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Variant:
    """How vLLM runs the model: split over ranks by a flag, or whole.

    `proof` names the count of `Seen` that shows it; `answers` compares whole answers.
    """

    flags: tuple[str, ...] = ()
    split: str | None = None
    twice: bool = False
    proof: str | None = None
    answers: int = 0


BY_HEADS = "--tensor-parallel-size"
VARIANTS: Mapping[str, Variant] = {
    "compiled": Variant(),
    "eager": Variant(("--enforce-eager",)),
    "tensor parallel": Variant(split=BY_HEADS),
    "pipeline parallel": Variant(split="--pipeline-parallel-size"),
    "chunks of 16 tokens": Variant(("--max-num-batched-tokens", "16", "--max-num-seqs", "4")),
    "prefix cached": Variant(("--block-size", "32"), twice=True, proof="cached_tokens"),
    "preempted": Variant(
        ("--block-size", "32", "--max-model-len", "512", "--num-gpu-blocks-override", "40"),
        proof="preemptions",
        answers=48,
    ),
}
DTYPE = "float32"
COMMON_FLAGS = ("--dtype", DTYPE, "--max-model-len", "1024", "--kv-cache-memory-bytes", str(1 << 28))


@dataclass
class Seen:
    """What vLLM's own statistics say that it did."""

    preemptions: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """A whole answer: how it ended, its text, first hits as (position, score over tau), how much was changed."""

    reason: FinishReason
    text: str
    hits: Mapping[str, tuple[int, float]]
    changed: float


@dataclass(frozen=True)
class Readings:
    """What an engine said: every guard's score at each prompt's last token, and whole answers."""

    scores: list[dict[str, GuardScore]]
    answers: list[Answer] = field(default_factory=list)


def ranks_of(variant: Variant, heads: int) -> int:
    """Two where the model can be split so, and over its attention heads the least number that divides them."""
    if variant.split is None:
        return 1
    return next(n for n in range(2, heads + 1) if heads % n == 0) if variant.split == BY_HEADS else 2


def read_prompts(data: Path, codec: TextCodec, count: int) -> list[Ids]:
    """As many of each of the four kinds, shuffled, so that every batch is a mixture."""
    share = -(-count // 4)
    plain = [islice(splits.read(data, name, Split.TEST).texts, share) for name in ("gsm8k", "mbpp", "mmlu")]
    languages = zip_longest(*(splits.read(data, name, Split.TEST).texts for name in XQUAD))
    texts = list(chain(*plain, islice((text for row in languages for text in row if text), share)))
    random.Random(0).shuffle(texts)
    return [codec.encode_frame(FRAME, text) for text in texts[:count]]


async def read(engine: Engine, prompts: Sequence[Ids], variant: Variant) -> Readings:
    """Starts an engine, verifies its guards, asks everything and stops it. Raises when a canary disagrees."""
    gate = asyncio.Semaphore(AT_A_TIME)

    async def check(name: str, prompt: Ids) -> dict[str, GuardScore]:
        async with gate:
            return {score.guard: score for score in await engine.check(prompt, name)}

    try:
        await engine.start()
        troubles = {name: trouble for name, trouble in (await engine.verify()).items() if trouble is not None}
        if troubles:
            raise RuntimeError(f"canaries disagree: {troubles}")
        scores: list[dict[str, GuardScore]] = []
        if not variant.answers:
            for time in range(1 + variant.twice):
                scores = await asyncio.gather(*(check(f"{time}-{i}", prompt) for i, prompt in enumerate(prompts)))
        asked = enumerate(prompts[: variant.answers])
        answers = await asyncio.gather(*(_answer(engine, f"answer-{i}", prompt) for i, prompt in asked))
        return Readings(scores, answers)
    finally:
        await engine.stop()


async def _answer(engine: Engine, name: str, prompt: Ids) -> Answer:
    """Draws a greedy answer while guards only watch, so that it goes on after a hit."""
    watching = default_policy(engine.info.guards).in_mode(GuardMode.SHADOW)
    text = ""
    async for event in engine.submit(EngineRequest(name, prompt, Sampling(DRAWN, temperature=0), watching)):
        if isinstance(event, Finish):
            assert event.error is None, event.error
            hits = {
                hit.score.guard: (hit.score.position, hit.score.score / (hit.score.tau or 1.0)) for hit in event.hits
            }
            return Answer(event.reason, text, hits, sum(acted.amount for acted in event.acted))
        text += event.text
    raise AssertionError("an answer without an end")


def _over_tau(of: GuardScore) -> float:
    """The score over the tau of the part that decided, which need not be another prompt's."""
    assert of.tau is not None
    return of.score / of.tau


def _apart(wanted: GuardScore, live: GuardScore) -> float:
    """How far two scores lie apart, relative to the first, or to its tau where that is larger.

    Where either engine found another part nearer to its tau, what is compared is scores over taus.
    """
    if wanted.part != live.part:
        return abs(_over_tau(live) - _over_tau(wanted))
    return abs(live.score - wanted.score) / max(abs(wanted.score), wanted.tau or 1e-9)


def compare(
    reference: Sequence[Mapping[str, GuardScore]],
    got: Sequence[Mapping[str, GuardScore]],
    margin: float,
    drifts: Mapping[str, Drift],
) -> list[dict[str, Any]]:
    """One row per guard. `drifts`: by guard, what its canaries may differ by."""
    rows = []
    for name in reference[0]:
        pairs = [(wanted[name], live[name]) for wanted, live in zip(reference, got, strict=True)]
        row: dict[str, Any] = {"guard": name, "prompts": len(pairs)}
        if pairs[0][0].tau is None:
            drift = drifts[name]
            near = [abs(live.score - wanted.score) <= drift.of(wanted.score, DTYPE) for wanted, live in pairs]
            row["disagree"] = near.count(False)
            row["within_margin"] = 0
            row["mean_reading"] = round(sum(wanted.score for wanted, _ in pairs) / len(pairs), 2)
        else:
            near = [abs(_over_tau(wanted) - 1) <= margin for wanted, _ in pairs]
            differ = [wanted.reading is not live.reading for wanted, live in pairs]
            row["disagree"] = sum(d and not n for d, n in zip(differ, near, strict=True))
            row["within_margin"] = sum(near)
            row["flipped"] = sum(d and n for d, n in zip(differ, near, strict=True))
            row["fires"] = sum(wanted.reading is Reading.INSIDE for wanted, _ in pairs)
        row["max_relative_score_difference"] = float(f"{max(_apart(wanted, live) for wanted, live in pairs):.3g}")
        rows.append(row)
    return rows


def compare_answers(
    reference: Sequence[Answer], got: Sequence[Answer], drifts: Mapping[str, Drift]
) -> list[dict[str, Any]]:
    """One row per guard, over the answers whose text is the same; rounding may turn a greedy choice over."""
    same = [(wanted, live) for wanted, live in zip(reference, got, strict=True) if wanted.text == live.text]
    rows = []
    for name, drift in drifts.items():
        hits = [(wanted.hits.get(name), live.hits.get(name)) for wanted, live in same]
        both = [(wanted, live) for wanted, live in hits if wanted is not None and live is not None]
        rows.append(
            {
                "guard": name,
                "answers": len(got),
                "other_text": len(got) - len(same),
                "fires": sum(wanted is not None for wanted, _ in hits),
                "disagree": sum((a is None) != (b is None) or (a and b and a[0] != b[0]) or False for a, b in hits)
                + sum(
                    not abs(wanted.changed - live.changed) <= drift.of(wanted.changed, DTYPE) for wanted, live in same
                ),
                "within_margin": 0,
                "max_relative_score_difference": float(f"{max((abs(a[1] - b[1]) for a, b in both), default=0):.3g}"),
            }
        )
    return rows


@contextmanager
def watched(seen: Seen) -> Iterator[None]:
    """Has vLLM keep statistics, which our engine leaves off, and adds them up."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Watch(StatLoggerBase):  # type: ignore[misc]
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            if scheduler_stats is not None:
                seen.cached_tokens += scheduler_stats.prefix_cache_stats.hits
            if iteration_stats is not None:
                seen.preemptions += iteration_stats.num_preempted_reqs

        def log_engine_initialized(self) -> None:
            pass

    start = AsyncLLM.from_vllm_config

    def start_watched(config: Any, **options: Any) -> Any:
        return start(config, **{**options, "disable_log_stats": False, "stat_loggers": [Watch]})

    with patch.object(AsyncLLM, "from_vllm_config", start_watched):
        yield


@contextmanager
def bound_cores(ranks: int) -> Iterator[None]:
    """On a CPU, a core for each rank: vLLM's own choice wants a memory node for each."""
    import torch

    name = "VLLM_CPU_OMP_THREADS_BIND"
    if ranks == 1 or torch.cuda.is_available() or name in os.environ:
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    with patch.dict(os.environ, {name: "|".join(str(cores[rank % len(cores)]) for rank in range(ranks))}):
        yield


async def on_vllm(
    model: Path, artifacts: Sequence[Path], prompts: Sequence[Ids], variant: Variant, ranks: int
) -> tuple[Readings, dict[str, int]]:
    """Readings of one variant, and its proof. Raises when it did not do what it is named for."""
    from server.engines.vllm.engine import VllmEngine

    seen = Seen()
    split = (variant.split, str(ranks)) if variant.split else ()
    options = VllmOptions(model=str(model), artifacts=tuple(artifacts), flags=(*COMMON_FLAGS, *variant.flags, *split))
    with watched(seen) if variant.proof else nullcontext(), bound_cores(ranks):
        readings = await read(VllmEngine(options), prompts, variant)
    if variant.proof is None:
        return readings, {}
    count = getattr(seen, variant.proof)
    if not count:
        raise RuntimeError(f"the variant did not come about: {seen}")
    return readings, {variant.proof: count}


async def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Asks the embedded engine once and every variant of vLLM, and compares."""
    from server.engines.embedded.engine import EmbeddedEngine

    guards = read_guards(args.artifacts)
    folders = dict(zip(guards, args.artifacts, strict=True))
    kinds = {name: guard.method.kind for name, guard in guards.items()}
    detectors = [name for name, kind in kinds.items() if kind is GuardKind.DETECTOR]
    sets = [detectors] if detectors else []
    sets += [[name] for name, kind in kinds.items() if kind is not GuardKind.DETECTOR]
    loaded = load_model(args.model, "cpu", DTYPE)
    prompts = read_prompts(args.data, loaded.codec, args.prompts)
    rows: list[dict[str, Any]] = []
    for names in sets:
        artifacts, drifts = [folders[name] for name in names], {name: guards[name].method.drift for name in names}
        embedded = partial(
            EmbeddedOptions, model=str(args.model), artifacts=tuple(artifacts), device="cpu", dtype=DTYPE
        )
        reference = await read(EmbeddedEngine(embedded()), prompts, Variant())
        wanted: list[Answer] = []
        for name in args.variants:
            variant = VARIANTS[name]
            ranks = ranks_of(variant, loaded.model.config.num_attention_heads)
            label = f"{name} {ranks}" if variant.split else name
            if variant.answers and not wanted:
                wanted = (await read(EmbeddedEngine(embedded()), prompts, variant)).answers
            live, proof = await on_vllm(args.model, artifacts, prompts, variant, ranks)
            if variant.answers:
                found = compare_answers(wanted, live.answers, drifts)
            else:
                found = compare(reference.scores, live.scores, args.margin, drifts)
            rows += [{"variant": label, **row, **proof} for row in found]
            for row in rows[-len(found) :]:
                print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--artifacts", type=Path, nargs="+", required=True, help="guards of this model")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--margin", type=float, default=MARGIN, help="of tau (default: %(default)s)")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    rows = asyncio.run(measure(args))
    disagree = sum(row["disagree"] for row in rows)
    name = args.model.resolve().name
    publish(f"parity.{name}", rows, prompts=args.prompts, margin=args.margin, model=name, disagree=disagree)


if __name__ == "__main__":
    main()
