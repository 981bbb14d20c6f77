"""What models predict of held-out answers by themselves, per byte, since their tokens differ.

    python -m benchmarks.real_text.compare [--models DIR ...] [--data DIR]

By default the model that `benchmarks.real_text.build` made and the measuring data's `realtext5m`, which was trained on
all of XQuAD and on some of MMLU: only GSM8K, MBPP and WikiText are held out from both.
"""

import argparse
from pathlib import Path

from rich.console import Console

from benchmarks.prompts.splits import data_folder
from benchmarks.real_text.build import MODEL
from benchmarks.real_text.heldout import report
from benchmarks.real_text.sheets import Sheet
from benchmarks.report import publish
from guards.inside.transformers.loading import load_model


def main() -> None:
    """Predicts, prints, and writes the result file."""
    data = data_folder()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--models", type=Path, nargs="+", default=[MODEL, data / "weights" / "realtext5m"])
    args = parser.parse_args()
    rows, parameters = [], {}
    for folder in args.models:
        loaded = load_model(folder, "cpu")
        parameters[folder.name] = sum(weight.numel() for weight in loaded.model.parameters())
        rows += [{"model": folder.name, "test": name, **found} for name, found in report(loaded, args.data).items()]
    fields = ("model", "test", "bytes", "bits_per_byte", "accuracy", "perplexity")
    lines = tuple(tuple(str(row[field]) for field in fields) for row in rows)
    Sheet("held-out answers", fields, lines).show(Console(width=120))
    publish("heldout", rows, parameters=parameters)


if __name__ == "__main__":
    main()
