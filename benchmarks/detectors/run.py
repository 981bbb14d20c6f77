"""The run that transfer and robustness share: fit every detector of every skill, measure all sets once, report."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.detectors.keys import CachedKeys
from benchmarks.detectors.plans import make_fitting
from benchmarks.detectors.ratios import ratios
from benchmarks.detectors.registry import ENTRIES
from benchmarks.detectors.rows import GOAL_FALSE_ABSTENTION, GOAL_RECALL, Measured, Row, rows_of
from benchmarks.detectors.tables import print_tables
from benchmarks.detectors.work import Fitted, Work
from benchmarks.prompts.items import Format
from benchmarks.prompts.materials import MATERIALS, SKILLS
from benchmarks.prompts.sets import PromptSet, build
from benchmarks.prompts.splits import Split, data_folder
from benchmarks.report import UNFINISHED, publish
from guards.calibration.activations import TokenIds
from guards.errors import CalibrationError
from guards.inside.transformers.loading import LoadedModel, load_model

Key = tuple[str, str]
"""Detector and skill."""
USUAL_SKILLS = ("mathematics", "code")
WORK = UNFINISHED / "detectors"
_LOG = Console(file=sys.stderr, width=150)


@dataclass(frozen=True)
class Wanted:
    """What is measured: a material's test side in a format, at most `limit` prompts."""

    material: str
    format: Format
    limit: int


@dataclass(frozen=True)
class Asked:
    """A set of prompts as the model reads them; `left_out` were longer than the context."""

    made: PromptSet
    examples: tuple[TokenIds, ...]
    left_out: int

    @property
    def tokens(self) -> int:
        """Of all prompts."""
        return sum(map(len, self.examples))


def parse(doc: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of both benchmarks."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model with a chat template")
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--skills", nargs="+", choices=SKILLS, default=list(USUAL_SKILLS))
    parser.add_argument("--detectors", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--work", type=Path, default=WORK, help="folder of what is done, from which a rerun goes on")
    parser.add_argument("--limit", type=int, help="prompts of a set at most; figures are printed and not published")
    parser.add_argument("--fit-limit", type=int, help="texts of a fitted material at most; likewise")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if not args.model.is_dir():
        parser.error(f"{args.model}: got no such folder; `python -m benchmarks.pretrained` makes one")
    for option in ("limit", "fit_limit"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            parser.error(f"got {getattr(args, option)} as --{option.replace('_', '-')}, wanted at least 1")
    return args


def encode(model: LoadedModel, made: PromptSet) -> Asked:
    """The set's prompts as a server takes them; those beyond the context are left out."""
    limit = model.max_tokens
    encoded = [made.format.encode(model.codec, prompt) for prompt in made.prompts]
    kept = tuple(ids for ids in encoded if limit is None or len(ids) <= limit)
    return Asked(made, kept, len(encoded) - len(kept))


def ask(model: LoadedModel, data: Path, wanted: Wanted, *, limit: int | None = None, seed: int = 0) -> Asked:
    """A wanted set, of `limit` prompts at most."""
    least = wanted.limit if limit is None else min(limit, wanted.limit)
    return encode(model, build(data, MATERIALS[wanted.material], wanted.format, Split.TEST, limit=least, seed=seed))


def fit_all(model: LoadedModel, work: Work, args: argparse.Namespace) -> tuple[dict[Key, Fitted], dict[str, str]]:
    """The detectors that could be fitted, and why the others could not: kept ones as they are."""
    fitted: dict[Key, Fitted] = {}
    refused: dict[str, str] = {}
    cached = CachedKeys(model)
    for name in args.detectors:
        for skill in args.skills:
            started, before, entry = time.monotonic(), cached.tokens, ENTRIES[name]
            fitting = make_fitting(args.data, entry.plan, skill, seed=args.seed, limit=args.fit_limit)
            place = work.place(name, skill, fitting)
            try:
                if not work.holds(place):
                    work.keep(place, skill, lambda: entry.calibrate(cached, fitting))  # noqa: B023
                    _log("fitted", f"{name} for {skill}", cached.tokens - before, started)
                fitted[name, skill] = work.fitted(place)
            except CalibrationError as error:
                refused[f"{name} {skill}"] = str(error)
    return fitted, refused


def _log(did: str, what: str, tokens: int, started: float) -> None:
    seconds = time.monotonic() - started
    _LOG.print(f"{did} {what}: {tokens:,} tokens in {seconds:.0f} s, {tokens / max(seconds, 1e-9):.0f} a second")


def measure(model: LoadedModel, work: Work, detectors: Mapping[Key, Fitted], asked: Asked) -> dict[Key, Measured]:
    """Every detector on one set: as kept, or in one pass for all that are not."""
    made, found = asked.made, {key: work.ratios(each, asked.examples) for key, each in detectors.items()}
    missing = {key: each for key, each in detectors.items() if found[key] is None}
    if missing:
        started = time.monotonic()
        read = ratios(model, {key: each.detector for key, each in missing.items()}, asked.examples)
        for key, ratio_E in read.items():
            work.keep_ratios(missing[key], asked.examples, ratio_E)
        found |= read
        _log("measured", made.name, asked.tokens, started)
    return {key: Measured(made.material, made.format, ratio_E) for key, ratio_E in found.items() if ratio_E is not None}


def _rows(measured: Mapping[Key, Sequence[Measured]]) -> list[Row]:
    return [
        {"detector": detector, **row}
        for (detector, skill), found in measured.items()
        for row in rows_of(skill, ENTRIES[detector].plan, found)
    ]


def run(name: str, args: argparse.Namespace, make_sets: Callable[[Sequence[str]], Sequence[Wanted]]) -> None:
    """Fits, measures, prints the tables, and writes the result file `<name>.<model's folder>.json`."""
    model = load_model(args.model)
    if not model.codec.chat.serves:
        sys.exit(f"{args.model}: got a model without a chat template, wanted one that is asked as users ask it")
    work = Work(args.work, model)
    asked = [
        each
        for wanted in make_sets(args.skills)
        if (each := ask(model, args.data, wanted, limit=args.limit, seed=args.seed)).examples
    ]
    tokens = sum(each.tokens for each in asked)
    _LOG.print(
        f"{len(asked)} sets, {sum(len(each.examples) for each in asked):,} prompts, {tokens:,} tokens to measure"
    )
    _LOG.print(f"what is done is kept in {work.folder}")
    detectors, refused = fit_all(model, work, args)
    todo = [each for each in asked if any(work.ratios(fitted, each.examples) is None for fitted in detectors.values())]
    _LOG.print(f"{len(todo)} sets, {sum(each.tokens for each in todo):,} tokens are still to be measured")
    measured: dict[Key, list[Measured]] = {key: [] for key in detectors}
    for each in asked if detectors else ():
        for key, one in measure(model, work, detectors, each).items():
            measured[key].append(one)
    rows = _rows(measured)
    print_tables(rows, args.detectors, refused)
    more = {
        "model": args.model.resolve().name,
        "weights": model.identity.weights_sha256,
        "dtype": model.identity.dtype,
        "goal": {"recall": GOAL_RECALL, "false_abstention": GOAL_FALSE_ABSTENTION},
        "tokens": tokens,
        "refused": refused,
        "left_out": {each.made.name: each.left_out for each in asked if each.left_out},
    }
    if args.limit is None and args.fit_limit is None:
        publish(f"{name}.{more['model']}", rows, **more)
    else:
        print(json.dumps({"rows": rows, **more}, ensure_ascii=False))
