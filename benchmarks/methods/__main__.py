"""All methods on one skill, mathematics: what each withholds, what it keeps, costs, and gives back.

    python -m benchmarks.methods --model DIR --detector FOLDER [--rows NAME ...] [--limit N] [--fitted N] [--work DIR]

`--detector` is an artifact of `calibrate ksd`, the row `ksd`. All others are calibrated here on train sides, their
options chosen on further train texts (`benchmarks/methods/guards.py` has them and the rule). What is reported is of
test sides, which nothing was chosen on: `--limit` questions of GSM8K, as they are and in four rewordings, and as many
of MBPP, WikiText and MMLU without mathematics.

Questions are asked over the API, greedily. An answer `calculates` where it writes a calculation that is right. How many
times as unlikely the right answers are, with an intervention, is their perplexity over that without it. Relearning is
ten steps of AdamW on four further texts of GSM8K, all weights, into which the intervention is folded. `decode` is
tokens a second with the guard over those without, the median over pairs of rounds that alternate. S-unlearning is of
exam questions, `--exams` of MMLU's mathematics and as many of its others.

A run that was stopped goes on where `--work` is the same; each row is kept stage by stage. Writes
`results/methods.json`, unless `--rows` leaves some out; the last line printed is the same.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.methods.choices import exams
from benchmarks.methods.material import material
from benchmarks.methods.relearning import RATE, STEPS
from benchmarks.methods.run import DECODE, GIVEN, NONE, ROWS, TOKENS, Run
from benchmarks.methods.table import as_line, table
from benchmarks.prompts.splits import data_folder
from benchmarks.report import UNFINISHED, publish
from guards.artifact.store import read_artifact
from guards.inside.transformers.loading import load_model
from server.evaluation.folder import RunFolder

LIMIT, FITTED, CHOSEN, EXAMS, ROUNDS = 40, 60, 8, 60, 6


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is not kept yet, prints, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--detector", type=Path, required=True, help="an artifact of `calibrate ksd` of mathematics")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"questions of a column (default {LIMIT})")
    parser.add_argument("--fitted", type=int, default=FITTED, help=f"texts of the forget file (default {FITTED})")
    parser.add_argument("--chosen", type=int, default=CHOSEN, help=f"validation texts of a column (default {CHOSEN})")
    parser.add_argument("--exams", type=int, default=EXAMS, help=f"exam questions of each kind (default {EXAMS})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"pairs of decode rounds (default {ROUNDS})")
    parser.add_argument("--work", type=Path, default=UNFINISHED / "methods", help="guards, answers and what is done")
    args = parser.parse_args(arguments)
    model = args.model.resolve()
    loaded = load_model(model)
    texts = material(data_folder(), fitted=args.fitted, chosen=args.chosen, asked=args.limit)
    asked = {
        "model": model.name,
        "weights": loaded.identity.weights_sha256,
        "detector": read_artifact(args.detector).digest,
        "limit": args.limit,
        "fitted": args.fitted,
        "chosen": args.chosen,
        "exams": args.exams,
        "tokens": TOKENS,
        "relearning": {"texts": len(texts.relearned), "steps": STEPS, "rate": RATE},
        "decode": {**asdict(DECODE), "rounds": args.rounds},
    }
    work = args.work / model.name
    with RunFolder(work / "done", asked) as kept:
        run = Run(
            model, loaded, texts, exams(data_folder(), args.exams), args.detector.resolve(), work, args.rounds, kept
        )
        rows = table([run.row(name) for name in ROWS if name in {NONE, *args.rows}])
    for row in rows:
        print(as_line(row))
    if len(rows) == len(ROWS):
        publish("methods", rows, **asked, given=GIVEN)
    else:
        print(json.dumps({"rows": rows, **asked}, ensure_ascii=False))


if __name__ == "__main__":
    main()
