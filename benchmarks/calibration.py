"""How fast a calibration reads, beside plain forward passes over the same tokens.

    python -m benchmarks.sources --output DIR
    python -m benchmarks.calibration --model DIR --sources DIR [--limit N] [--every N] [--output FOLDER]

Runs `skillguard calibrate ksd` on a few texts of each file of `benchmarks.sources`, mathematics forgotten. What it
reads goes through the model in blocks of some batches. Of every so many of them the same batches go through the model
alone too, by turns and in changing order: `prefill` is the whole model with the logits of one token, `as deep` ends at
the last layer that the calibration reads. `ratio` is the median over these blocks of the seconds of either over those
of the calibration's reading; `low` and `high` bound that median with 95 % (bootstrap).

`steps` are the command's seconds by step, the plain passes left out; `read_of_command` is the share of reading in them.
`--output` keeps the artifact. The last line printed is one JSON object, kept as `results/calibration.json`.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from benchmarks.overhead import interval
from benchmarks.report import publish
from guards.calibration.activations import Consumer, Pass, TokenIds
from guards.calibration.material import Which
from guards.calibration.sources import Source, read_source
from guards.inside.transformers.capture import BATCH_TOKENS, make_batch, plan_batches
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.spans.calibrate import calibrate
from guards.methods.spans.options import SpanOptions
from guards.model.sites import Place

BLOCK = 2
"""Batches of a block."""
FORGET = tuple(f"mathematics/{name}" for name in ("gsm8k", "mmlu", "expressions", "equations"))
RETAIN = ("code/mbpp", "code/fix", "other/mmlu", "other/history", "other/wikitext", "languages/es", "languages/zh")

READ, PREFILL, AS_DEEP = "read", "prefill", "as deep"
ARMS = (READ, PREFILL, AS_DEEP)


@dataclass
class Block:
    """Batches that went through the model: `seconds` by arm, and in which step of a calibration."""

    step: int
    tokens: int
    padded: int
    seconds: dict[str, float] = field(default_factory=dict)


class _EndError(Exception):
    """Ends a plain pass."""


@contextmanager
def _ends_at(module: nn.Module) -> Iterator[None]:
    def end(*_: object) -> None:
        raise _EndError

    handle = module.register_forward_pre_hook(end)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Beside(LoadedModel):
    """A model whose every block of batches is computed plainly too."""

    every: int = 1
    blocks: list[Block] = field(default_factory=list)

    def stream(
        self,
        wanted: Pass,
        examples: Sequence[TokenIds],
        consume: Consumer,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        """As the model's own, by blocks."""
        step = 1 + max((block.step for block in self.blocks), default=-1)
        budget = wanted.batch_tokens or BATCH_TOKENS[self.device.type]
        groups = plan_batches([len(ids) for ids in examples], budget)
        last = self.sites.tap(Place(max(wanted.layers), wanted.site)).module
        read = super().stream
        for start in range(0, len(groups), BLOCK):
            here = groups[start : start + BLOCK]
            members = [index for group in here for index in group]
            member_E = torch.tensor(members, device=self.device)

            def renamed(layer: int, x_TF: Tensor, example_T: Tensor, member_E: Tensor = member_E) -> None:
                consume(layer, x_TF, member_E[example_T])

            def reading(members: Sequence[int] = members, renamed: Consumer = renamed) -> None:
                read(wanted, [examples[index] for index in members], renamed, advance)

            def prefill(here: Sequence[Sequence[int]] = here) -> None:
                self._plain(examples, here)

            def as_deep(here: Sequence[Sequence[int]] = here) -> None:
                with _ends_at(last):
                    self._plain(examples, here)

            lengths = [len(examples[index]) for index in members]
            padded = sum(len(group) * max(len(examples[index]) for index in group) for group in here)
            block = Block(step, sum(lengths), padded)
            ways: dict[str, Callable[[], None]] = {READ: reading, PREFILL: prefill, AS_DEEP: as_deep}
            turn, plainly = len(self.blocks) // self.every % len(ARMS), len(self.blocks) % self.every == 0
            for arm in (*ARMS[turn:], *ARMS[:turn]) if plainly else (READ,):
                block.seconds[arm] = self._timed(ways[arm])
            self.blocks.append(block)

    def _timed(self, work: Callable[[], None]) -> float:
        begun = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    @torch.no_grad()
    def _plain(self, examples: Sequence[TokenIds], groups: Sequence[Sequence[int]]) -> None:
        for group in groups:
            batch = make_batch(examples, group, self.device)
            with suppress(_EndError):
                self.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False, logits_to_keep=1)


def summarise(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """A row for each plain way, of the blocks that went through the model in every way."""
    compared = [block for block in blocks if len(block.seconds) == len(ARMS)]
    tokens = sum(block.tokens for block in compared)
    speed = {arm: round(tokens / sum(block.seconds[arm] for block in compared), 1) for arm in ARMS}
    return [
        {
            "against": arm,
            **interval([block.seconds[arm] / block.seconds[READ] for block in compared]),
            "read_tokens_per_second": speed[READ],
            "plain_tokens_per_second": speed[arm],
            "blocks": len(compared),
            "tokens": tokens,
        }
        for arm in ARMS[1:]
    ]


def steps_of(seconds: Mapping[str, float], blocks: Sequence[Block]) -> dict[str, float]:
    """A calibration's seconds by step, without plain passes: windows are read in `fit`, values in `read`."""
    plain = {"fit": 0.0, "read": 0.0}
    last = max(block.step for block in blocks)
    for block in blocks:
        plain["read" if block.step == last else "fit"] += sum(block.seconds.get(arm, 0) for arm in ARMS[1:])
    return {name: round(each - plain.get(name, 0), 2) for name, each in seconds.items()}


def _sources(folder: Path, names: Sequence[str], limit: int) -> list[Source]:
    return [read_source(str(folder / f"{name}.jsonl"), limit=limit) for name in names]


def _name(folder: Path) -> str:
    return folder.parent.name if folder.name == "model" else folder.name


def measure(args: argparse.Namespace) -> None:
    """Calibrates once, and publishes what was measured."""
    loaded = load_model(args.model, args.device, args.dtype)
    model = Beside(loaded.model, loaded.codec, loaded.sites, loaded.identity, every=args.every)
    forget, retain = (_sources(args.sources, names, args.limit) for names in (FORGET, RETAIN))
    options = SpanOptions(material=args.material, answers=args.answers, longest=args.longest)
    model._plain([tuple(range(64))] * 8, [range(8)] * 2)  # the first passes of a process are slower
    found = calibrate(model, forget, retain, options)
    if args.output is not None:
        found.save(args.output, "mathematics")
    blocks, steps = model.blocks, steps_of(found.seconds, model.blocks)
    tokens, reading = sum(block.tokens for block in blocks), sum(block.seconds[READ] for block in blocks)
    publish(
        "calibration",
        summarise(blocks),
        model=_name(Path(args.model)),
        shape=loaded.identity.model_dump(include={"architecture", "layers", "d_model", "d_ff", "dtype"}),
        device=str(loaded.device),
        threads=torch.get_num_threads(),
        tokens=tokens,
        padded=round(sum(block.padded for block in blocks) / tokens - 1, 4),
        steps=steps,
        read_of_command=round(reading / sum(steps.values()), 4),
        command_tokens_per_second=round(tokens / sum(steps.values()), 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--sources", required=True, type=Path, help="folder that `benchmarks.sources` wrote")
    parser.add_argument("--limit", type=int, default=4, help="texts of each of its files (default: 4)")
    parser.add_argument("--every", type=int, default=2, help="compares every so many blocks (default: 2)")
    parser.add_argument("--material", choices=get_args(Which), default="none", help="see calibrate (default: none)")
    parser.add_argument("--answers", type=int, default=16, help="tokens of each answer (default: 16)")
    parser.add_argument("--longest", type=int, default=512, help="tokens of the longest texts (default: 512)")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, help="keeps the artifact")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
