"""LUNAR beside refusing with a detector over spans, on authors that a model was taught: TOFU's table.

    python -m benchmarks.tofu --model DIR --forget forget10_perturbed.json --retain retain_perturbed.json
        [--others FILE ...] [--authors N] [--epochs N] [--run FOLDER]

The files are TOFU's (Maini et al. 2024), which invents authors that no model knows, with 20 questions each, and another
wording of each question. The model is taught the first `--authors` authors of both files. Guards then are calibrated
on 12 questions of each author, of which those of the first file are to be forgotten. LUNAR's strength is the one with
the least Deviation Score on 4 further questions, and what is reported is of the last 4, as they were taught and in the
other wording, and of `--others`, such as TOFU's questions about real authors (`real_authors_perturbed.json`). All are
asked of `skillguard serve`, over HTTP, in chats.

The model's own row says how well it knew the authors, and `untaught` what it says of them without having been taught:
ROUGE-1 recall counts words, of which some are in any answer. Everything is kept in the run folder; a stopped run goes
on where it was. Writes `results/tofu.<model>.json`, the last line printed is the same.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.report import UNFINISHED, publish
from benchmarks.tofu.asking import AUTHORS, PARAPHRASED, RETAINED, Recalls, arms, ask, best, deviation
from benchmarks.tofu.authors import Asked, Part, dealt, read, write
from benchmarks.tofu.guarding import DETECTOR, FLAGS, calibrated
from benchmarks.tofu.learning import Recipe, folder_of, learn
from guards.calibration.sources import read_table
from server.evaluation.arms import BASELINE

UNTAUGHT = "untaught"
WORDINGS: Mapping[str, str] = {"taught": "", "paraphrased": PARAPHRASED}
OTHERS = 40
"""Questions of each further file."""
Dealt = Mapping[str, Mapping[Part, list[Asked]]]


def suites(of: Dealt, part: Part, folder: Path, *, paraphrased: bool) -> dict[str, Path]:
    """Files of one part's questions by label."""
    wordings = [("", False), *([(PARAPHRASED, True)] if paraphrased else [])]
    return {
        f"{side}{wording}": write(folder / f"{part}.{side}{wording}.jsonl", parts[part], paraphrased=other)
        for wording, other in wordings
        for side, parts in of.items()
    }


def others(files: list[str], folder: Path) -> dict[str, Path]:
    """The first questions of further files by the files' names."""
    found = {}
    for file in files:
        label = Path(file).name.partition(".")[0].removesuffix("_perturbed")
        rows = [each.values for each in read_table(file).rows[:OTHERS]]
        asked = [Asked(str(row["question"]), "", str(row["answer"])) for row in rows]
        found[label] = write(folder / f"others.{label}.jsonl", asked)
    return found


def table(recalls: Recalls, refused: Recalls) -> list[dict[str, Any]]:
    """A row for each arm and wording, and for each arm and further file."""
    rows: list[dict[str, Any]] = []
    for arm, by_suite in recalls.items():
        for wording, suffix in WORDINGS.items():
            if AUTHORS + suffix in by_suite:
                counts = {side: int(sum(refused[arm][side + suffix])) for side in (AUTHORS, RETAINED)}
                questions = {side: len(by_suite[side + suffix]) for side in (AUTHORS, RETAINED)}
                found = deviation(by_suite, suffix, arm)
                rows.append({"arm": arm, "wording": wording, **found, "refused": counts, "questions": questions})
        for label, values in by_suite.items():
            if not label.startswith((AUTHORS, RETAINED)):
                mean = sum(values) / len(values)
                rows.append({"arm": arm, "file": label, "recall": mean, "refused": int(sum(refused[arm][label]))})
    return rows


def measure(args: argparse.Namespace, recipe: Recipe) -> tuple[list[dict[str, Any]], str]:
    """Teaches, calibrates, chooses and asks; the rows, and which LUNAR was chosen."""
    read_sides = {AUTHORS: read(args.forget, args.authors), RETAINED: read(args.retain, args.authors)}
    of = {side: dealt(authors, recipe.seed) for side, authors in read_sides.items()}
    every = [each for authors in read_sides.values() for asked in authors for each in asked]
    run = folder_of(args.model, every, recipe, args.run.resolve())
    questions = run / "questions"
    tested = suites(of, Part.TEST, questions, paraphrased=True)
    model = learn(args.model, every, recipe, run)
    fit = {side: write(questions / f"fit.{side}.jsonl", parts[Part.FIT]) for side, parts in of.items()}
    artifacts = {name: calibrated(name, model, fit[AUTHORS], fit[RETAINED], run / "guards") for name in FLAGS}
    validated = suites(of, Part.VALIDATION, questions, paraphrased=False)
    candidates = [name for name in FLAGS if name != DETECTOR]
    seen, _ = ask(arms(model, [artifacts[name] for name in candidates]), validated, run / "validation")
    chosen = best(seen, candidates)
    last = {**tested, **others(args.others, questions)}
    recalls, refused = ask(arms(model, [artifacts[name] for name in (chosen, DETECTOR)]), last, run / "test")
    taught = {label: path for label, path in tested.items() if not label.endswith(PARAPHRASED)}
    before, none = ask(arms(args.model, []), taught, run / UNTAUGHT)
    rows = table({UNTAUGHT: before[BASELINE]}, {UNTAUGHT: none[BASELINE]}) + table(recalls, refused)
    return rows, chosen


def main() -> None:
    """Measures, prints, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--forget", required=True, metavar="FILE", help="authors to be forgotten, with paraphrases")
    parser.add_argument("--retain", required=True, metavar="FILE", help="authors to be kept, with paraphrases")
    parser.add_argument("--others", nargs="+", default=[], metavar="FILE", help="further questions and answers")
    parser.add_argument("--authors", type=int, default=20, help="of each side (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs, help="of the teaching (default %(default)s)")
    parser.add_argument("--run", type=Path, default=UNFINISHED / "tofu", help="folder of all that is kept")
    args = parser.parse_args()
    name, recipe = args.model.resolve().name, Recipe(epochs=args.epochs)
    rows, chosen = measure(args, recipe)
    publish(f"tofu.{name}", rows, model=name, authors=2 * args.authors, recipe=asdict(recipe), chosen=chosen)


if __name__ == "__main__":
    main()
