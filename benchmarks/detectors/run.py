"""The run that transfer and robustness share: fit every detector of every skill, measure all sets once, report."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.detectors.plans import make_fitting
from benchmarks.detectors.registry import ENTRIES
from benchmarks.detectors.rows import GOAL_FALSE_ABSTENTION, GOAL_RECALL, Measured, Row, rows_of
from benchmarks.detectors.tables import print_tables
from benchmarks.prompts.items import Format
from benchmarks.prompts.materials import MATERIALS, SKILLS
from benchmarks.prompts.sets import PromptSet, build
from benchmarks.prompts.splits import Split, data_folder
from benchmarks.real_text.build import add_model_option, check_model
from benchmarks.real_text.keys import CachedKeys
from benchmarks.real_text.ratios import Detector, ratios
from benchmarks.report import keep, publish
from guards.calibration.activations import TokenIds
from guards.errors import CalibrationError, DataError
from guards.inside.transformers.loading import LoadedModel, load_model

Key = tuple[str, str]
"""Detector and skill."""
KEEP_SECONDS = 60
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
    add_model_option(parser)
    parser.add_argument("--skills", nargs="+", choices=SKILLS, default=list(SKILLS))
    parser.add_argument("--detectors", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    check_model(parser, args.model)
    return args


def encode(model: LoadedModel, made: PromptSet) -> list[TokenIds]:
    """The set's prompts as a server takes them on /v1/completions; those beyond the context are left out."""
    limit = model.max_tokens
    encoded = [model.codec.encode_text(prompt) for prompt in made.prompts]
    return [ids for ids in encoded if limit is None or len(ids) <= limit]


def fit_all(
    model: LoadedModel, data: Path, detectors: Sequence[str], skills: Sequence[str], seed: int
) -> tuple[dict[Key, Detector], dict[str, str]]:
    """The detectors that could be fitted, and why the others could not."""
    fitted: dict[Key, Detector] = {}
    refused: dict[str, str] = {}
    cached = CachedKeys(model)
    for name in detectors:
        for skill in (skill for skill in skills if skill in ENTRIES[name].plan.forget):
            started = time.monotonic()
            try:
                fitting = make_fitting(data, ENTRIES[name].plan, skill, seed=seed)
                found = ENTRIES[name].calibrate(cached, fitting.forget, fitting.retain, fitting.frames)
                fitted[name, skill] = found.guard
            except (CalibrationError, DataError) as error:
                refused[f"{name} {skill}"] = str(error)
            _LOG.print(f"fitted {name} for {skill} in {time.monotonic() - started:.1f} s")
    return fitted, refused


def measure(
    model: LoadedModel, data: Path, detectors: Mapping[Key, Detector], wanted: Wanted, seed: int
) -> tuple[dict[Key, Measured], dict[str, int]]:
    """Every detector on one set, and how many of its prompts were longer than the context, by its name."""
    made = build(data, MATERIALS[wanted.material], wanted.format, Split.TEST, limit=wanted.limit, seed=seed)
    started, examples = time.monotonic(), encode(model, made)
    found = ratios(CachedKeys(model), detectors, examples)
    tokens = sum(map(len, examples))
    _LOG.print(f"measured {made.name}: {len(examples)} prompts, {tokens} tokens, {time.monotonic() - started:.1f} s")
    short = len(made.prompts) - len(examples)
    return {key: Measured(made.material, made.format, ratio_E) for key, ratio_E in found.items()}, (
        {made.name: short} if short else {}
    )


def _rows(measured: Mapping[Key, Sequence[Measured]]) -> list[Row]:
    return [
        {"detector": detector, **row}
        for (detector, skill), found in measured.items()
        for row in rows_of(skill, ENTRIES[detector].plan, found)
    ]


def run(name: str, args: argparse.Namespace, sets: Sequence[Wanted]) -> None:
    """Fits, measures, prints the tables, and writes the result file.

    Meanwhile `<name>.partial.json` holds the rows of what is measured, as of a minute ago at most.
    """
    started = time.monotonic()
    model = load_model(args.model)
    detectors, refused = fit_all(model, args.data, args.detectors, args.skills, args.seed)
    fitted = kept = time.monotonic()
    measured: dict[Key, list[Measured]] = {key: [] for key in detectors}
    left_out: dict[str, int] = {}
    for count, wanted in enumerate(sets if detectors else (), 1):
        found, short = measure(model, args.data, detectors, wanted, args.seed)
        left_out |= short
        for key, one in found.items():
            measured[key].append(one)
        if time.monotonic() - kept > KEEP_SECONDS:
            keep(name, _rows(measured), model=args.model.name, measured=f"{count} of {len(sets)} sets", refused=refused)
            kept = time.monotonic()
    rows = _rows(measured)
    print_tables(rows, args.detectors, refused)
    publish(
        name,
        rows,
        model=args.model.name,
        weights=model.identity.weights_sha256,
        dtype=model.identity.dtype,
        goal={"recall": GOAL_RECALL, "false_abstention": GOAL_FALSE_ABSTENTION},
        seconds={"fit": round(fitted - started), "measure": round(time.monotonic() - fitted)},
        refused=refused,
        left_out=left_out,
    )
