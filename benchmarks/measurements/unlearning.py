"""ESU's table on real models: accuracy with each guard over accuracy without."""

from collections.abc import Mapping
from typing import Any

from benchmarks.measurements.results import Results, Row, matching, only
from benchmarks.measurements.text import between, measured, paragraph, section, share, table

NO_GUARD = "none"


def _relative(row: Row) -> str:
    ratio: Mapping[str, Any] | None = row["relative"]
    if ratio is None:
        return "-"
    refused = row["abstained"]["hits"]
    withheld = f", {refused} refused" if refused else ""
    return f"{share(ratio['value'], 2)} {between((ratio['low'], ratio['high']), 2)}{withheld}"


def _accuracy(row: Row) -> str:
    return f"{share(row['accuracy']['rate'], 2)} of {row['accuracy']['total']}"


def _digests(found: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{each['name']} `{each['digest'][:12]}`" for guards in found["settings"]["guards"].values() for each in guards
    )


def unlearning_section(results: Results, model: str) -> str:
    """One model's table; a row for each guard."""
    found = results.read(f"unlearning.{model}")
    rows: list[Row] = found["rows"]
    columns = list(dict.fromkeys(row["column"] for row in rows))
    guards = list(dict.fromkeys(row["guard"] for row in rows if row["guard"] != NO_GUARD))
    lines = [("no guard, accuracy", *(_accuracy(row) for row in matching(rows, guard=NO_GUARD)))]
    lines += [
        (f"`{guard}`", *(_relative(only(rows, guard=guard, column=column)) for column in columns)) for guard in guards
    ]
    return section(
        f"{model}: ESU's table",
        paragraph(
            "The first row is the model's accuracy, the others are accuracy with one guard over accuracy without, on "
            "the same items, with intervals of 95 %; a refused item is wrong. `na` is Neuron Adjust and `sp` Selective "
            "Pruning, with the percentage of neurons; `cube` is the paper's detector, `ksd` the default one. ESU "
            "reports for Llama-3-8B that GSM8K falls to .162 with MBPP at 1.00 and MMLU at .999, and MBPP to .008 with "
            "GSM8K at .957 and MMLU at .999. A column that the model mostly fails says little."
        ),
        measured(found, f"prompts of the test side, in chats; guards calibrated for it, by digest: {_digests(found)}"),
        table(("guard", *columns), lines),
    )
