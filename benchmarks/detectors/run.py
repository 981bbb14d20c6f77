"""The run that transfer and robustness share: fit every detector of every skill, measure all sets once, report."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.detectors.base import Detector
from benchmarks.detectors.measure import encode, judge
from benchmarks.detectors.memory import RememberingModel
from benchmarks.detectors.plans import make_fitting
from benchmarks.detectors.registry import ENTRIES
from benchmarks.detectors.rows import GOAL_FALSE_ABSTENTION, GOAL_RECALL, Measured, rows_of
from benchmarks.detectors.tables import print_tables
from benchmarks.prompts.items import Format
from benchmarks.prompts.materials import MATERIALS, SKILLS
from benchmarks.prompts.sets import build
from benchmarks.real_text.splits import Split, data_folder
from benchmarks.report import publish
from guards.activations import Activations
from guards.errors import CalibrationError, DataError
from guards.loading import load_model

Key = tuple[str, str]
"""Detector and skill."""
_LOG = Console(file=sys.stderr, width=150)


@dataclass(frozen=True)
class Wanted:
    """What is measured: a material's test side in a format, at most `limit` prompts."""

    material: str
    format: Format
    limit: int


def parse(doc: str) -> argparse.Namespace:
    """The options of both benchmarks."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--model", type=Path, help="model folder (default: weights/realtext5m of the data)")
    parser.add_argument("--skills", nargs="+", choices=SKILLS, default=list(SKILLS))
    parser.add_argument("--detectors", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def fit_all(
    model: Activations, data: Path, detectors: Sequence[str], skills: Sequence[str], seed: int
) -> tuple[dict[Key, Detector], dict[str, str]]:
    """The detectors that could be fitted, and why the others could not."""
    fitted: dict[Key, Detector] = {}
    refused: dict[str, str] = {}
    remembering = RememberingModel(model)
    for name in detectors:
        for skill in (skill for skill in skills if skill in ENTRIES[name].plan.forget):
            started = time.monotonic()
            try:
                fitting = make_fitting(data, ENTRIES[name].plan, skill, seed=seed)
                fitted[name, skill] = ENTRIES[name].calibrate(remembering, fitting)
            except (CalibrationError, DataError) as error:
                refused[f"{name} {skill}"] = str(error)
            _LOG.print(f"fitted {name} for {skill} in {time.monotonic() - started:.1f} s")
    return fitted, refused


def measure_all(
    model: Activations, data: Path, detectors: Mapping[Key, Detector], sets: Sequence[Wanted], seed: int
) -> tuple[dict[Key, list[Measured]], dict[str, int]]:
    """Every detector's verdicts on every set, and how many prompts of which sets were longer than the context."""
    measured: dict[Key, list[Measured]] = {key: [] for key in detectors}
    left_out = {}
    for wanted in sets if detectors else ():
        made = build(data, MATERIALS[wanted.material], wanted.format, Split.TEST, limit=wanted.limit, seed=seed)
        started, examples = time.monotonic(), encode(model, made)
        if len(examples) < len(made.prompts):
            left_out[made.name] = len(made.prompts) - len(examples)
        for key, verdicts in judge(model, detectors, examples).items():
            measured[key].append(Measured(made.material, made.format, verdicts))
        tokens = sum(map(len, examples))
        _LOG.print(
            f"measured {made.name}: {len(examples)} prompts, {tokens} tokens, {time.monotonic() - started:.1f} s"
        )
    return measured, left_out


def run(name: str, args: argparse.Namespace, sets: Sequence[Wanted]) -> None:
    """Fits, measures, prints the tables, and writes the result file."""
    started = time.monotonic()
    folder = args.model or args.data / "weights" / "realtext5m"
    model = load_model(folder)
    detectors, refused = fit_all(model, args.data, args.detectors, args.skills, args.seed)
    fitted = time.monotonic()
    measured, left_out = measure_all(model, args.data, detectors, sets, args.seed)
    rows = [
        {"detector": detector, **row}
        for (detector, skill), found in measured.items()
        for row in rows_of(skill, ENTRIES[detector].plan, found)
    ]
    print_tables(rows, args.detectors, refused)
    publish(
        name,
        rows,
        model=folder.name,
        dtype=model.identity.dtype,
        goal={"recall": GOAL_RECALL, "false_abstention": GOAL_FALSE_ABSTENTION},
        seconds={"fit": round(fitted - started), "measure": round(time.monotonic() - fitted)},
        refused=refused,
        left_out=left_out,
    )
