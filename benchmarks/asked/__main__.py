"""What guards on a real model refuse and what they leave alone, as users see it: over HTTP, on the test side.

    python -m benchmarks.asked --model DIR --artifacts FOLDER [FOLDER ...] [--skills mathematics code ...]
        [--cells PATTERN ...] [--limit N] [--work DIR] [FLAGS OF serve]

Each guard is served alone: an answer names one guard that withheld it, so beside another a guard's own verdict is not
seen. Every cell's prompts go to `skillguard serve` and count as refused when `finish_reason` is "content_filter".
Cells are a skill's own questions and what callers do to them, what must be left alone, conversations, and answers that
are written; `--list` shows their names. Flags that are not listed here go to `skillguard serve`: `--dtype bfloat16`.

Every answer is kept in the work folder, by model, artifact, flags of serve, and request: the same command goes on after
a stop, and another one asks only what is new. Answers are not bound to the code: delete the folder after a change of
the guards or the engines. The result names every commit that its answers came from.

The model needs a chat template. `benchmarks.sources` writes files that its guards can be calibrated on. The last line
printed is one JSON object, as in benchmarks/results/asked.<model>.json.
"""

import argparse
import asyncio
import hashlib
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from transformers import AutoConfig, AutoTokenizer

from benchmarks import report
from benchmarks.asked.asking import Asker, Connect, Kept
from benchmarks.asked.cells import LONG_TOKENS, OWN, SHORT_TOKENS, cells, fitting
from benchmarks.asked.formats import Filler
from benchmarks.asked.rows import Row
from benchmarks.asked.run import Plan, names, rows
from benchmarks.prompts.splits import data_folder
from benchmarks.serving import running_server
from guards.artifact.manifest import Manifest
from guards.artifact.store import read_artifact

WORK = report.UNFINISHED / "asked"
CONCURRENCY = 8
TIMEOUT_SECONDS = 1800


@asynccontextmanager
async def serve(*arguments: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server of its own."""
    with running_server(*arguments) as url:
        # A connection that is kept between cells may be closed by the server just as the next request is sent.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS, limits=limits) as client:
            yield client


@dataclass(frozen=True)
class Guard:
    """An artifact."""

    folder: Path
    manifest: Manifest

    @property
    def shown(self) -> dict[str, Any]:
        """What a result says of it."""
        return {
            "guard": self.folder.name,
            "skill": self.manifest.skill,
            "method": self.manifest.method,
            "scope": self.manifest.scope.value,
            "digest": self.manifest.manifest_sha256,
        }

    def kept_at(self, work: Path, model: Path, flags: Sequence[str]) -> Path:
        """The file of its answers."""
        weights = self.manifest.model.weights_sha256 or "unbound"
        served = "-" + hashlib.sha256("\0".join(flags).encode()).hexdigest()[:12] if flags else ""
        return work / f"{model.name}-{weights[:12]}" / f"{self.manifest.manifest_sha256[:12]}{served}.jsonl"


def _guards(folders: Sequence[Path], skills: Sequence[str] | None) -> list[Guard]:
    found = [Guard(folder.resolve(), read_artifact(folder).manifest) for folder in folders]
    wanted = [guard for guard in found if skills is None or guard.manifest.skill in skills]
    for guard in wanted:
        if guard.manifest.skill not in OWN:
            raise SystemExit(
                f"{guard.folder.name}: got the skill {guard.manifest.skill!r}, wanted one of {', '.join(OWN)}: "
                "calibrate with one of these as --skill"
            )
    if not wanted:
        raise SystemExit(f"got no artifact of {', '.join(skills or ())}; wanted one of these skills at least")
    return wanted


async def measure(guard: Guard, plan: Plan, kept: Kept, connect: Connect, concurrency: int) -> AsyncIterator[Row]:
    """One guard's rows."""
    async with Asker(kept, connect, concurrency) as asker:
        async for found in rows(asker, plan):
            yield {"skill": plan.skill, "guard": guard.folder.name, **found}


async def run(args: argparse.Namespace, flags: Sequence[str]) -> None:
    """Asks every guard everything, and publishes it."""
    task = asyncio.current_task()
    assert task is not None
    # The server is a process of its own; it is stopped with this one.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    filler = Filler(AutoTokenizer.from_pretrained(args.model, trust_remote_code=False))
    context = getattr(
        AutoConfig.from_pretrained(args.model, trust_remote_code=False).get_text_config(),
        "max_position_embeddings",
        None,
    )
    tokens = fitting((SHORT_TOKENS, LONG_TOKENS), context)
    commit = report.environment()["commit"]
    name = f"asked.{args.model.name}"
    guards = _guards(args.artifacts, args.skills)
    found: list[Row] = []
    commits: set[str] = set()
    more: dict[str, Any] = {
        "model": args.model.name,
        "guards": [guard.shown for guard in guards],
        "serve": list(flags),
        "limit": args.limit,
        "cells": args.cells,
        "other_text_tokens": tokens,
    }
    for guard in guards:
        skill = guard.manifest.skill
        plan = Plan(skill, cells(skill, filler, tokens), data_folder(), args.cells, args.limit)
        if args.list:
            print(*names(plan), sep="\n")
            continue
        kept = Kept(guard.kept_at(args.work, args.model, flags), commit)
        arguments = ["--model", str(args.model), "--artifacts", str(guard.folder), *flags]
        async for row in measure(guard, plan, kept, partial(serve, *arguments), args.concurrency):
            said = f"[{row['low']:.3f}, {row['high']:.3f}] {row['hits']} of {row['total']}"
            print(f"{guard.folder.name:24} {row['role']:9} {row['cell']:36} {row['rate']:.3f} {said}", file=sys.stderr)
            found.append(row)
            commits |= kept.commits
            report.keep(name, found, **more, commits=sorted(commits))
    if not args.list:
        report.publish(name, found, **more, commits=sorted(commits))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--artifacts", type=Path, nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--skills", nargs="+", choices=tuple(OWN), help="only guards of these")
    parser.add_argument("--cells", nargs="+", default=["*"], metavar="PATTERN", help="only cells of these names")
    parser.add_argument("--limit", type=int, help="prompts a cell (default: 100, 40 and 20 of long ones)")
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY, help=f"asked at a time (default {CONCURRENCY})")
    parser.add_argument("--work", type=Path, default=WORK, help="keeps the answers (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the names of the cells and ask nothing")
    args, flags = parser.parse_known_args(arguments)
    args.model = args.model.resolve()
    if args.limit is not None and args.limit < 1:
        parser.error(f"got --limit {args.limit}, wanted at least 1")
    try:
        asyncio.run(run(args, flags))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise SystemExit("stopped: the same command goes on from here") from None


if __name__ == "__main__":
    main()
