"""Whether vLLM's verdicts are the embedded engine's, on real prompts and however vLLM runs the model.

    python -m benchmarks.parity [--prompts N] [--variants NAME ...] [--data DIR] [--model DIR] [--artifacts FOLDER ...]
        [--margin M] [--work DIR]

Where none are given, guards are calibrated first, by the project's own calibration: Key Space Detection over spans of
one skill and as cubes of four, and Neuron Adjust of one, which is served by itself since it changes what the others
read. Prompts are a
quarter each of the test sides of GSM8K, MBPP, MMLU and XQuAD (seven languages in turn; `benchmarks.prompts.splits`),
none of them used in calibration, as `Q: ...\\nA:`.

A verdict of vLLM may differ from the embedded engine's only where the embedded score lies within the margin, relative
to tau: kernels sum in other orders. `within_margin` counts those prompts, `flipped` the verdicts that differ there, and
`disagree` all other verdicts that differ. For Neuron Adjust the verdict is the number of neurons moved at the last
token, and `disagree` counts prompts where it differs by more than a canary's may. A score's difference is relative to
the score, or to tau where that is larger. `cached_tokens` and `preemptions`, by vLLM's own statistics, show that a
variant did what it is named for. `results/parity.json` is of the guards that are calibrated here,
`results/parity.<model>.json` of given ones. The last line printed is one JSON object.
"""

import argparse
import asyncio
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.prompts import skills, splits
from benchmarks.prompts.skills import FRAME, Skill, forget_source, retain_sources
from benchmarks.prompts.splits import XQUAD, Split, data_folder, some
from benchmarks.report import publish
from guards.calibration.finished import Calibration
from guards.calibration.sources import Source
from guards.core.drift import FEW_NEURONS
from guards.core.verdict import GuardMode
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.cube.calibrate import calibrate as calibrate_cubes
from guards.methods.cube.options import CubeOptions
from guards.methods.neuron_adjust.calibrate import calibrate as calibrate_neuron_adjust
from guards.methods.neuron_adjust.options import NeuronAdjustOptions
from guards.methods.spans.calibrate import calibrate as calibrate_spans
from guards.methods.spans.options import SpanOptions
from guards.model.encoding import TextCodec
from server.engines.base import Engine, EngineRequest, Finish, FinishReason, GuardScore, Sampling
from server.engines.options import EmbeddedOptions, VllmOptions
from server.policies import default_policy

SKILLS = ("mathematics", "code", "language-es", "language-zh")
OVER_SPANS = ADJUSTED = "mathematics"
FORGET_LIMIT, RETAIN_LIMIT = 300, 60
"""Texts of each source: what is compared is engines, not how well guards separate."""
MARGIN = 1e-3
"""Of tau, in float32: a thousand times its rounding, a hundredth of what separates a canary from tau."""
AT_A_TIME = 64
DRAWN = 128
"""Tokens of an answer, where whole answers are compared."""

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Variant:
    """How vLLM runs the model. `proof` names the count of `Seen` that shows it; `answers` compares whole answers."""

    flags: tuple[str, ...] = ()
    ranks: int = 1
    twice: bool = False
    proof: str | None = None
    answers: int = 0


VARIANTS: Mapping[str, Variant] = {
    "compiled": Variant(),
    "eager": Variant(("--enforce-eager",)),
    "tensor parallel 2": Variant(("--tensor-parallel-size", "2"), ranks=2),
    "pipeline parallel 2": Variant(("--pipeline-parallel-size", "2"), ranks=2),
    "chunks of 16 tokens": Variant(("--max-num-batched-tokens", "16", "--max-num-seqs", "4")),
    "prefix cached": Variant(("--block-size", "32"), twice=True, proof="cached_tokens"),
    "preempted": Variant(
        ("--block-size", "32", "--max-model-len", "512", "--kv-cache-memory-bytes", str(4 << 20)),
        proof="preemptions",
        answers=48,
    ),
}
COMMON_FLAGS = ("--dtype", "float32", "--max-model-len", "1024", "--kv-cache-memory-bytes", str(1 << 28))


@dataclass
class Seen:
    """What vLLM's own statistics say that it did."""

    preemptions: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """A whole answer: how it ended, its text, each guard's first hit as (position, score over tau), neurons moved."""

    reason: FinishReason
    text: str
    hits: Mapping[str, tuple[int, float]]
    moved: float


@dataclass(frozen=True)
class Readings:
    """What an engine said: every guard's score at each prompt's last token, and whole answers."""

    scores: list[dict[str, GuardScore]]
    answers: list[Answer] = field(default_factory=list)


def read_prompts(data: Path, codec: TextCodec, count: int) -> list[Ids]:
    """As many of each of the four kinds, shuffled, so that every batch is a mixture."""
    share = -(-count // 4)
    plain = [islice(splits.read(data, name, Split.TEST).texts, share) for name in ("gsm8k", "mbpp", "mmlu")]
    languages = zip_longest(*(splits.read(data, name, Split.TEST).texts for name in XQUAD))
    texts = list(chain(*plain, islice((text for row in languages for text in row if text), share)))
    random.Random(0).shuffle(texts)
    return [codec.encode_frame(FRAME, text) for text in texts[:count]]


def calibrate(model: Path, data: Path, folder: Path) -> tuple[TextCodec, list[Path], list[Path]]:
    """Writes the detectors and the intervention that are not there yet.

    Returns what encodes prompts, and both lists of artifacts.
    """
    loaded = load_model(model, "cpu", "float32")
    by_name = {skill.name: skill for skill in skills.SKILLS}
    makers: dict[str, tuple[str, Callable[[Skill], Calibration]]] = {
        **{f"ksd-{name}": (name, partial(_cubes, loaded, data)) for name in SKILLS},
        f"spans-{OVER_SPANS}": (OVER_SPANS, partial(_spans, loaded, data)),
        f"na-{ADJUSTED}": (ADJUSTED, partial(_adjusted, loaded, data)),
    }
    for name, (skill, make) in makers.items():
        if not (folder / name).exists():
            make(by_name[skill]).save(folder / name, skill)
    *detectors, intervention = (folder / name for name in makers)
    return loaded.codec, detectors, [intervention]


def _cubes(loaded: LoadedModel, data: Path, skill: Skill) -> Calibration:
    return calibrate_cubes(loaded, *_sides(data, skill), CubeOptions(frames=(FRAME,)))


def _spans(loaded: LoadedModel, data: Path, skill: Skill) -> Calibration:
    return calibrate_spans(loaded, *_sides(data, skill), SpanOptions(frames=(FRAME,)))


def _adjusted(loaded: LoadedModel, data: Path, skill: Skill) -> Calibration:
    return calibrate_neuron_adjust(loaded, *_sides(data, skill), NeuronAdjustOptions(frames=(FRAME,)))


def _sides(data: Path, skill: Skill) -> tuple[list[Source], list[Source]]:
    """Forget and retain sources, cut short."""
    retain = [some(source, RETAIN_LIMIT) for source in retain_sources(data, skill)]
    return [some(forget_source(data, skill), FORGET_LIMIT)], retain


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


def compare(
    reference: Sequence[Mapping[str, GuardScore]], got: Sequence[Mapping[str, GuardScore]], margin: float
) -> list[dict[str, Any]]:
    """One row per guard."""
    rows = []
    for name in reference[0]:
        pairs = [(wanted[name], live[name]) for wanted, live in zip(reference, got, strict=True)]
        tau = pairs[0][0].tau
        least = 1e-9 if tau is None else tau
        difference = max(abs(live.score - wanted.score) / max(abs(wanted.score), least) for wanted, live in pairs)
        row: dict[str, Any] = {"guard": name, "prompts": len(pairs)}
        if tau is None:
            moved = [abs(live.score - wanted.score) for wanted, live in pairs]
            row["disagree"] = sum(not each <= FEW_NEURONS.slack for each in moved)
            row["within_margin"] = sum(0 < each <= FEW_NEURONS.slack for each in moved)
            row["max_neurons_difference"] = max(moved)
            row["mean_neurons_moved"] = round(sum(wanted.score for wanted, _ in pairs) / len(pairs), 2)
        else:
            near = [abs(wanted.score / tau - 1) <= margin for wanted, _ in pairs]
            differ = [wanted.reading is not live.reading for wanted, live in pairs]
            row["disagree"] = sum(d and not n for d, n in zip(differ, near, strict=True))
            row["within_margin"] = sum(near)
            row["flipped"] = sum(d and n for d, n in zip(differ, near, strict=True))
            row["fires"] = sum(wanted.score <= tau for wanted, _ in pairs)
        row["max_relative_score_difference"] = float(f"{difference:.3g}")
        rows.append(row)
    return rows


def compare_answers(reference: Sequence[Answer], got: Sequence[Answer], guards: Sequence[str]) -> list[dict[str, Any]]:
    """One row per guard, over the answers whose text is the same; rounding may turn a greedy choice over."""
    same = [(wanted, live) for wanted, live in zip(reference, got, strict=True) if wanted.text == live.text]
    rows = []
    for name in guards:
        hits = [(wanted.hits.get(name), live.hits.get(name)) for wanted, live in same]
        both = [(wanted, live) for wanted, live in hits if wanted is not None and live is not None]
        rows.append(
            {
                "guard": name,
                "answers": len(got),
                "other_text": len(got) - len(same),
                "fires": sum(wanted is not None for wanted, _ in hits),
                "disagree": sum((a is None) != (b is None) or (a and b and a[0] != b[0]) or False for a, b in hits)
                + sum(abs(wanted.moved - live.moved) > FEW_NEURONS.slack for wanted, live in same),
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
    model: Path, artifacts: Sequence[Path], prompts: Sequence[Ids], variant: Variant
) -> tuple[Readings, dict[str, int]]:
    """Readings of one variant, and its proof. Raises when it did not do what it is named for."""
    from server.engines.vllm.engine import VllmEngine

    seen = Seen()
    options = VllmOptions(model=str(model), artifacts=tuple(artifacts), flags=(*COMMON_FLAGS, *variant.flags))
    with watched(seen) if variant.proof else nullcontext(), bound_cores(variant.ranks):
        readings = await read(VllmEngine(options), prompts, variant)
    if variant.proof is None:
        return readings, {}
    count = getattr(seen, variant.proof)
    if not count:
        raise RuntimeError(f"the variant did not come about: {seen}")
    return readings, {variant.proof: count}


async def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Calibrates, asks the embedded engine once and every variant of vLLM, and compares."""
    from server.engines.embedded.engine import EmbeddedEngine

    if args.artifacts:
        codec, sets = load_model(args.model, "cpu", "float32").codec, [args.artifacts]
    else:
        codec, *sets = calibrate(args.model, args.data, folder)
    prompts = read_prompts(args.data, codec, args.prompts)
    rows: list[dict[str, Any]] = []
    for artifacts in sets:
        embedded = partial(
            EmbeddedOptions, model=str(args.model), artifacts=tuple(artifacts), device="cpu", dtype="float32"
        )
        reference = await read(EmbeddedEngine(embedded()), prompts, Variant())
        wanted: list[Answer] = []
        for name in args.variants:
            variant = VARIANTS[name]
            if variant.answers and not wanted:
                wanted = (await read(EmbeddedEngine(embedded()), prompts, variant)).answers
            live, proof = await on_vllm(args.model, artifacts, prompts, variant)
            if variant.answers:
                found = compare_answers(wanted, live.answers, [path.name for path in artifacts])
            else:
                found = compare(reference.scores, live.scores, args.margin)
            rows += [{"variant": name, **row, **proof} for row in found]
            for row in rows[-len(found) :]:
                print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--model", type=Path, help="model folder (default: weights/realtext5m of the data)")
    parser.add_argument("--artifacts", type=Path, nargs="+", default=[], help="detectors of the model, served together")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--margin", type=float, default=MARGIN, help="of tau (default: %(default)s)")
    parser.add_argument(
        "--work", type=Path, help="folder of the guards, kept for another run (default: a temporary one)"
    )
    args = parser.parse_args()
    args.model = args.model or args.data / "weights" / "realtext5m"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory() as scratch:
        rows = asyncio.run(measure(args, args.work or Path(scratch)))
    disagree = sum(row["disagree"] for row in rows)
    name = f"parity.{args.model.name}" if args.artifacts else "parity"
    publish(name, rows, prompts=args.prompts, margin=args.margin, model=args.model.name, disagree=disagree)


if __name__ == "__main__":
    main()
