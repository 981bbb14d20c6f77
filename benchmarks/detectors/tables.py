"""The figures for the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.detectors.rows import POOL, Row
from benchmarks.prompts.items import Role

SHOWN_WORST = 3


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    wrong = "-" if row["false_abstention"] is None else f"{row['false_abstention']:.3f}"
    area = "-" if row["auroc"] is None else f"{row['auroc']:.3f}"
    return f"{row['recall']:.2f} / {wrong} / {area}"


def _own_table(skill: str, rows: Sequence[Row], detectors: Sequence[str]) -> Table:
    table = Table("set", *detectors, title=f"{skill}: recall / false abstention in the same format / AUROC")
    found = {(row["test"], row["detector"]): row for row in rows}
    for test in dict.fromkeys(row["test"] for row in rows):
        cells = [found.get((test, detector)) for detector in detectors]
        table.add_row(test, *[_cell(row) + _marks(row) for row in cells])
    return table


def _marks(row: Row | None) -> str:
    """What of the set is new to the detector: s(ource), f(ormat)."""
    return "" if row is None or not row["held_out"] else " " + "".join(part[0] for part in row["held_out"])


def _summary(rows: Sequence[Row], detectors: Sequence[str]) -> Table:
    table = Table("forget", "detector", "goal met, all sets", "fitted ones", "worst retained materials")
    for skill in dict.fromkeys(row["forget"] for row in rows):
        for detector in detectors:
            mine = [row for row in rows if (row["forget"], row["detector"]) == (skill, detector)]
            own = [row for row in mine if row["role"] == Role.FORGET.value and row["met"] is not None]
            if not mine:
                continue
            seen = [row for row in own if not row["held_out"]]
            others = [row for row in mine if row["role"] == Role.RETAIN.value]
            worst = sorted(others, key=lambda row: -row["false_abstention"])[:SHOWN_WORST]
            table.add_row(
                skill,
                detector,
                f"{sum(row['met'] for row in own)} of {len(own)}",
                f"{sum(row['met'] for row in seen)} of {len(seen)}",
                ", ".join(f"{row['test']} {row['false_abstention']:.3f}" for row in worst),
            )
    return table


def _pools(rows: Sequence[Row]) -> Table:
    """Several sets together, at tau and at low rates against all that is retained."""
    pools = [row for row in rows if row["role"] == POOL]
    rates = list(dict.fromkeys(rate for row in pools for rate in row["recall_at"]))
    table = Table(
        *("forget", "detector", "sets", "recall", "false abstention", "AUROC", "log-AUROC"),
        *(f"recall at {rate}" for rate in rates),
    )
    for row in pools:
        figures = (row["recall"], row["false_abstention"], row["auroc"], row["log_auroc"], *row["recall_at"].values())
        table.add_row(
            row["forget"],
            row["detector"],
            f"{row['test']} ({row['sets']})",
            *("-" if figure is None else f"{figure:.3f}" for figure in figures),
        )
    return table


def print_tables(rows: Sequence[Row], detectors: Sequence[str], refused: Mapping[str, str]) -> None:
    """One table per skill, its sets together, a summary, and what could not be fitted."""
    console = Console(width=150)
    own = [row for row in rows if row["role"] == Role.FORGET.value]
    for skill in dict.fromkeys(row["forget"] for row in own):
        console.print(_own_table(skill, [row for row in own if row["forget"] == skill], detectors))
    console.print("after a cell: what the fit did not hold, s source, f format")
    console.print(_pools(rows))
    console.print(_summary(rows, detectors))
    for name, reason in refused.items():
        console.print(f"{name}: refused: {reason}", markup=False, soft_wrap=True)
