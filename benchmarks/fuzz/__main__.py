"""Hands mutations in, and counts what became of them.

    python -m benchmarks.fuzz --target artifact --count 1000000 [--seed 0]
    python -m benchmarks.fuzz --target artifact --only 4711

A mutation is made of its number and the seed, so that `--only` tries one again, whose error it lets through. A run that
was stopped goes on. The exit status is 1 where there are findings. The last line printed is one JSON object, as in
benchmarks/results/fuzz.TARGET.json.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import report
from benchmarks.fuzz.artifact import artifacts
from benchmarks.fuzz.importer import importer
from benchmarks.fuzz.protocol import protocol
from benchmarks.fuzz.target import Target, Try

TARGETS: dict[str, Target] = {"artifact": artifacts, "importer": importer, "protocol": protocol}
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


def run(target: str, count: int, seed: int) -> Tally:
    """Goes on where a run of this target and seed was stopped, until there are so many."""
    name = f"fuzz.{target}"
    kept = [row for row in report.kept(name) if row["seed"] == seed]
    tally = Tally(target, seed, kept[0] if kept else None)
    with tempfile.TemporaryDirectory() as scratch, TARGETS[target](Path(scratch)) as attempt:
        while tally.count < count:
            tally.add(attempt)
            if tally.count % _KEPT_EACH == 0:
                report.keep(name, [{**tally.row(), "seed": seed}])
    return tally


def main() -> None:
    """Runs a target and publishes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="tries this one alone, and publishes nothing")
    args = parser.parse_args()
    if args.only is not None:
        with tempfile.TemporaryDirectory() as scratch, TARGETS[args.target](Path(scratch)) as attempt:
            print(attempt(dice(args.target, args.seed, args.only)))
        return
    tally = run(args.target, args.count, args.seed)
    report.publish(f"fuzz.{args.target}", [{**tally.row(), "seed": args.seed}])
    sys.exit(1 if tally.outcomes["finding"] else 0)


if __name__ == "__main__":
    main()
