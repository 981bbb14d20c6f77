"""Hands mutations in, and counts what became of them.

    python -m benchmarks.fuzz --target artifact --count 1000000 [--seed 0]
    python -m benchmarks.fuzz --target artifact --only 4711
    python -m benchmarks.fuzz --target artifact --count 100000 --guided
    python -m benchmarks.fuzz --target artifact --input FILE

A mutation is made of its number and the seed, so that `--only` tries one again, whose error it lets through. A run that
was stopped goes on. With `--guided` atheris chooses what is mutated further, by the branches that it took; a finding is
kept as a file under benchmarks/unfinished, which `--input` tries again. The exit status is 1 where there are findings.
The last line printed is one JSON object, as in benchmarks/results/fuzz.TARGET.json, or fuzz.TARGET-guided.json.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import report
from benchmarks.fuzz.guided import GuideMissingError, guide, instrumented
from benchmarks.fuzz.target import Inputs, Target, Try

TARGETS = {"artifact": "artifacts", "importer": "importer", "protocol": "protocol"}
"""By module, which is imported when its target is opened: with what it imports, which may have to be instrumented."""
_KEPT_EACH, _TOLD = 5_000, 20


def dice(target: str, seed: int, number: int) -> Random:
    """Those of one mutation."""
    return Random(f"{target} {seed} {number}")


class Tally:
    """What became of a target's mutations so far."""

    def __init__(self, target: str, seed: int, row: dict[str, Any] | None = None) -> None:
        row = row or {}
        self.target, self.seed = target, seed
        self.count = int(row.get("count", 0))
        self.seconds = float(row.get("seconds", 0.0))
        self.outcomes = Counter[str](row.get("outcomes", {}))
        self.findings: list[str] = list(row.get("findings", []))
        self.slowest = tuple(row.get("slowest", (0.0, 0)))

    def add(self, attempt: Try) -> None:
        """Tries the next one."""
        number = self.count
        began = time.perf_counter()
        try:
            self.outcomes[attempt(dice(self.target, self.seed, number))] += 1
        except Exception as error:  # whatever it is, it is a finding
            self.outcomes["finding"] += 1
            if len(self.findings) < _TOLD:
                self.findings.append(f"{number}: {type(error).__name__}: {str(error)[:300]}")
        took = time.perf_counter() - began
        self.count += 1
        self.seconds += took
        self.slowest = max(self.slowest, (round(took, 3), number))

    def row(self) -> dict[str, Any]:
        """As it is published."""
        return {
            "target": self.target,
            "count": self.count,
            "outcomes": dict(sorted(self.outcomes.items())),
            "findings": self.findings,
            "slowest": list(self.slowest),
            "seconds": round(self.seconds, 1),
        }


@contextmanager
def opened(target: str) -> Iterator[tuple[Inputs, Path]]:
    """A target's inputs, and an empty folder beside its own."""
    named: Target = getattr(import_module(f"benchmarks.fuzz.{target}"), TARGETS[target])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / target
        folder.mkdir()
        with named(folder) as inputs:
            yield inputs, Path(scratch)


def run(target: str, count: int, seed: int) -> Tally:
    """Goes on where a run of this target and seed was stopped, until there are so many."""
    name = f"fuzz.{target}"
    kept = [row for row in report.kept(name) if row["seed"] == seed]
    tally = Tally(target, seed, kept[0] if kept else None)
    with opened(target) as (inputs, _):
        while tally.count < count:
            tally.add(inputs.attempt)
            if tally.count % _KEPT_EACH == 0:
                report.keep(name, [{**tally.row(), "seed": seed}])
    return tally


def run_guided(target: str, count: int, seed: int) -> tuple[Tally, int]:
    """As many, mutated from what took a branch that none before had; and how many such inputs were kept."""
    tally = Tally(f"{target}, guided", seed)
    findings = report.UNFINISHED / f"fuzz.{target}"
    findings.mkdir(parents=True, exist_ok=True)
    with instrumented(), opened(target) as (inputs, scratch):

        def attempt(data: bytes) -> None:
            known = tally.outcomes["finding"]
            tally.add(lambda _: inputs.tried(data))
            if tally.outcomes["finding"] > known:
                (findings / str(tally.count - 1)).write_bytes(data)

        kept = guide(inputs, attempt, count, seed, scratch, findings)
    if tally.count < count:
        raise RuntimeError(
            f"{target}: the fuzzer ended after {tally.count} inputs, wanted {count}: its last lines say why"
        )
    return tally, kept


def main() -> None:
    """Runs a target and publishes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--only", type=int, metavar="NUMBER", help="tries this one alone, and publishes nothing")
    way.add_argument("--input", type=Path, metavar="FILE", help="tries this finding of --guided's alone, likewise")
    way.add_argument("--guided", action="store_true", help="by the branches that are taken; needs atheris")
    args = parser.parse_args()
    if args.only is not None or args.input is not None:
        with opened(args.target) as (inputs, _):
            data = args.input.read_bytes() if args.input else inputs.mutation(dice(args.target, args.seed, args.only))
            print(inputs.tried(data))
        return
    if args.guided:
        try:
            tally, kept = run_guided(args.target, args.count, args.seed)
        except GuideMissingError as error:
            sys.exit(str(error))
        name, more = f"fuzz.{args.target}-guided", {"kept": kept}
    else:
        tally = run(args.target, args.count, args.seed)
        name, more = f"fuzz.{args.target}", {}
    report.publish(name, [{**tally.row(), **more, "seed": args.seed}])
    sys.exit(1 if tally.outcomes["finding"] else 0)


if __name__ == "__main__":
    main()
