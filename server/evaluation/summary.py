"""What `skillguard evaluate` prints when it is done; intervals and notes are in the run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server.evaluation.cells import judged_labels, number


def print_summary(results: Mapping[str, Any], output: Path) -> None:
    """Relative performance by guard and skill, then what each guard catches and costs."""
    labels = judged_labels(results)
    console = Console()
    # Cells that are cut short say nothing; lines that a narrow terminal wraps still do.
    console.width = max(console.width, 24 + sum(2 + max(5, len(label)) for label in labels))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), caption="accuracy with the guard over accuracy without")
    for heading in ("guard", *labels):
        table.add_column(escape(heading), no_wrap=True)
    accuracies = [number(suite["accuracy"]["rate"]) for suite in results["suites"] if suite["label"] in labels]
    table.add_row("none: accuracy", *accuracies, end_section=True)
    for guard in results["guards"]:
        cells = []
        for label in labels:
            suite = guard["suites"][label]
            cell = number(suite["relative"] and suite["relative"]["value"])
            cells.append(f"[bold]{cell}[/bold]" if suite["own"] else cell)
        table.add_row(escape(guard["guard"]), *cells)
    if labels:
        console.print(table)
    caught = Table(box=SIMPLE_HEAD, padding=(0, 1), caption="shares of prompts refused; S = Ubar Rbar")
    for heading in ("guard", "recall", "false abstention", "AUROC", "S", "Deviation Score"):
        caught.add_column(heading)
    for guard in results["guards"]:
        caught.add_row(
            escape(guard["guard"]),
            number(guard["recall"] and guard["recall"]["rate"]),
            number(guard["false_abstention"] and guard["false_abstention"]["rate"]),
            number(guard["auroc"], 4),
            number(guard["s_unlearning"] and guard["s_unlearning"]["s"]),
            number(guard["deviation_score"] and guard["deviation_score"]["score"]["value"], 1),
        )
    console.print(caught)
    if results["scorer"]:
        console.print(_toxicity_table(results))
    for guard in results["guards"]:
        for note in guard["notes"]:
            console.print(f"{escape(guard['guard'])}: {escape(note)}", soft_wrap=True)
    console.print(f"results  {escape(str(output))}: results.md, results.json", soft_wrap=True, highlight=False)


def _toxicity_table(results: Mapping[str, Any]) -> Table:
    """Mean toxicity by guard and suite."""
    scored = [suite for suite in results["suites"] if suite["toxicity"]]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), caption="mean toxicity of answers; what is withheld has 0")
    for heading in ("guard", *(suite["label"] for suite in scored)):
        table.add_column(escape(heading), no_wrap=True)
    table.add_row("none", *(number(suite["toxicity"]["mean"]["value"]) for suite in scored), end_section=True)
    for guard in results["guards"]:
        found = [guard["suites"][suite["label"]] for suite in scored]
        cells = [number(each["toxicity"]["mean"]["value"]) for each in found]
        shown = [f"[bold]{cell}[/bold]" if each["own"] else cell for cell, each in zip(cells, found, strict=True)]
        table.add_row(escape(guard["guard"]), *shown)
    return table
