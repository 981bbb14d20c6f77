"""ESU's table on a real model: what each method takes away from mathematics or code, and what it leaves of the rest.

    python -m benchmarks.unlearning --model DIR --sources DIR --detectors FOLDER [FOLDER ...]
        [--skills mathematics code] [--limit N] [--reading N] [--run FOLDER]

Rows are no guard; the paper's cube; the given guards (`calibrate ksd`'s default, of the skills); Neuron Adjust at the
paper's 0.5, 1.5 and 3 % of neurons; and Selective Pruning at the paper's shares, 1.5 % for mathematics and 0.01 % for
code. All but the given ones are calibrated here, on files of `benchmarks.sources`. Columns are GSM8K, MBPP (its tests
run in a sandbox), MMLU without mathematics, MMLU's quantitative questions, and XQuAD in seven languages: the test side,
which nothing was chosen on, asked in chats through `skillguard evaluate`'s own code.

`--limit` items of each column, and `--reading` of each language; greedy, answers of at most 256 tokens. A stopped run
goes on where --run is given. Writes `results/unlearning.<model>.json`, the last line printed is the same.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.prompts import texts
from benchmarks.prompts.materials import QUANTITATIVE
from benchmarks.prompts.splits import LANGUAGES, REST, Split, Values, data_folder, rows, subject_group
from benchmarks.report import UNFINISHED, publish
from guards.calibration.finished import Calibration
from guards.calibration.sources import Source, read_source, seeded_rank
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.cube.calibrate import calibrate as calibrate_cubes
from guards.methods.cube.options import CubeOptions
from guards.methods.loaded import read_guards
from guards.methods.neuron_adjust.calibrate import calibrate as calibrate_neuron_adjust
from guards.methods.neuron_adjust.options import NeuronAdjustOptions
from guards.methods.selective_pruning.calibrate import calibrate as calibrate_pruning
from guards.methods.selective_pruning.options import PruningOptions
from server.engines.options import EmbeddedOptions
from server.evaluation.arms import BASELINE, engine_arms
from server.evaluation.evaluate import Evaluation, evaluate
from server.evaluation.options import EvaluationOptions
from server.evaluation.suites import read_suites
from server.evaluation.summary import print_summary

SKILLS = ("mathematics", "code")
FORGET: Mapping[str, str] = {"mathematics": "mathematics/gsm8k", "code": "code/mbpp"}
RETAIN = ("mathematics/gsm8k", "code/mbpp", "other/mmlu", *(f"languages/{language}" for language in LANGUAGES))
"""Files of `benchmarks.sources`, less the skill's own: what ESU fits on, and what its table then asks."""
ADJUSTED = (0.5, 1.5, 3.0)
PRUNED: Mapping[str, float] = {"mathematics": 1.5, "code": 0.01}
FORGET_LIMIT, RETAIN_LIMIT = 120, 40
"""Texts of the forgotten skill, and of each of the other files."""
LIMIT, READING, TOKENS = 40, 10, 256


def _quantitative(row: Values) -> bool:
    return row["subject"] in QUANTITATIVE or texts.asks_for_a_calculation(row["question"], row["choices"])


def suites(data: Path, limit: int, reading: int) -> dict[str, list[Values]]:
    """The columns' rows by the kind and label of the suite, at most `limit`, or `reading` of a language."""
    rest = [row for row in rows(data, "mmlu", Split.TEST) if subject_group(row["subject"]) == REST]
    found = {
        "gsm8k": (rows(data, "gsm8k", Split.TEST), limit),
        "mbpp": (rows(data, "mbpp", Split.TEST), limit),
        "mmlu": ([row for row in rest if not _quantitative(row)], 2 * limit),
        "mmlu:quantitative": ([row for row in rest if _quantitative(row)], limit),
        **{f"xquad:{each}": (rows(data, f"xquad-{each}", Split.TEST), reading) for each in LANGUAGES},
    }
    return {kind: _drawn(values, most) for kind, (values, most) in found.items()}


def _drawn(values: Sequence[Values], limit: int) -> list[Values]:
    ranked = seeded_rank([json.dumps(row, sort_keys=True) for row in values], 0)
    return [values[index] for index in sorted(ranked[:limit])]


def write(folder: Path, asked: Mapping[str, Iterable[Values]]) -> list[str]:
    """Writes every column as a file; returns the suites as `skillguard evaluate` takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for kind, values in asked.items():
        path = folder / f"{kind.rpartition(':')[2]}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in values), encoding="utf-8")
        found.append(f"{kind}={path}")
    return found


def _made(loaded: LoadedModel, row: str, skill: str, forget: Source, retain: Sequence[Source]) -> Calibration:
    """The guard of one row. `row`: cube, na-PERCENT or sp-PERCENT."""
    method, _, percent = row.partition("-")
    if method == "cube":
        return calibrate_cubes(loaded, [forget], retain, CubeOptions(frames=("chat",), progress=True))
    fraction = float(percent) / 100
    if method == "na":
        adjusted = NeuronAdjustOptions(frames=("chat",), fraction=fraction, progress=True)
        return calibrate_neuron_adjust(loaded, [forget], retain, adjusted)
    pruned = PruningOptions(frames=("chat",), fraction=fraction, progress=True)
    return calibrate_pruning(loaded, [forget], retain, pruned)


def guards(model: Path, sources: Path, detectors: Sequence[Path], skills: Sequence[str], folder: Path) -> list[Path]:
    """Artifacts in the table's order; those that `folder` lacks are made there."""
    read = read_guards(detectors).values()
    given = {each.artifact.manifest.skill: path for each, path in zip(read, detectors, strict=True)}
    loaded, found = None, []
    for skill in skills:
        rows_of = ("cube", *(f"na-{percent}" for percent in ADJUSTED), f"sp-{PRUNED[skill]}")
        for row in rows_of:
            found.append(folder / f"{row}-{skill}")
            if found[-1].exists():
                continue
            loaded = loaded or load_model(str(model))
            forget = read_source(str(sources / f"{FORGET[skill]}.jsonl"), limit=FORGET_LIMIT)
            others = [name for name in RETAIN if name != FORGET[skill]]
            retain = [read_source(str(sources / f"{name}.jsonl"), limit=RETAIN_LIMIT) for name in others]
            _made(loaded, row, skill, forget, retain).save(found[-1], skill)
        if skill in given:
            found.append(given[skill])
    return found


def table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each guard and column; the first ones are the model's own."""
    found: list[dict[str, Any]] = [
        {"guard": BASELINE, "column": suite["label"], "accuracy": suite["accuracy"]} for suite in results["suites"]
    ]
    for guard in results["guards"]:
        for label, cell in guard["suites"].items():
            shown = {name: cell[name] for name in ("accuracy", "relative", "abstained")}
            found.append({"guard": guard["guard"], "skill": guard["skills"][0], "column": label, **shown})
    return found


def main() -> None:
    """Calibrates, asks, prints, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--sources", type=Path, required=True, help="folder that `benchmarks.sources` wrote")
    parser.add_argument("--detectors", type=Path, nargs="+", required=True, help="artifacts of `calibrate ksd`")
    parser.add_argument("--skills", nargs="+", choices=SKILLS, default=list(SKILLS))
    parser.add_argument(
        "--limit", type=int, default=LIMIT, help=f"items of a column, twice as many of MMLU (default {LIMIT})"
    )
    parser.add_argument("--reading", type=int, default=READING, help=f"items of a language (default {READING})")
    parser.add_argument("--run", type=Path, default=UNFINISHED / "unlearning", help="folder of guards and answers")
    args = parser.parse_args()
    name = args.model.resolve().name
    run = args.run / name
    artifacts = guards(args.model, args.sources, args.detectors, args.skills, run / "guards")
    options = EvaluationOptions(max_tokens=TOKENS)
    asked = write(run / "suites", suites(data_folder(), args.limit, args.reading))
    model = EmbeddedOptions(model=str(args.model), served_name=name, artifacts=tuple(artifacts))
    evaluation = Evaluation(engine_arms(model, together=False), read_suites(asked, [], options), options)
    results = evaluate(evaluation, run / "answers", plots=False)
    print_summary(results, run / "answers")
    publish(f"unlearning.{name}", table(results), model=name, settings=results["settings"])


if __name__ == "__main__":
    main()
