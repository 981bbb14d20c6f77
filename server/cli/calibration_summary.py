"""What `skillguard calibrate` prints when it is done."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guards.calibration.finished import Calibration
from guards.calibration.shown import ShownTable
from server.cli.flags import as_flags


def _rich(shown: ShownTable) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), caption=shown.caption)
    for heading in shown.headings:
        table.add_column(heading, no_wrap=heading != "frame")
    for row in shown.rows:
        table.add_row(*map(escape, row))
    return table


def print_summary(
    calibration: Calibration,
    table: ShownTable,
    *,
    skill: str,
    model: str,
    output: Path,
    report: Path,
    digest: str,
    flags: Sequence[str] = (),
) -> None:
    """A table of the held-out figures, the warnings, and the next command, with the engine's `flags`."""
    console = Console()
    console.print(_rich(table))
    for source in calibration.record.sources:
        console.print(f"{source.role} {escape(source.line)}", soft_wrap=True, highlight=False)
    for warning in calibration.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(as_flags(warning))}", soft_wrap=True)
    firing = sum(canary.fires for canary in calibration.canaries)
    console.print(
        f"{escape(skill)}: {firing} firing and {len(calibration.canaries) - firing} other canaries; "
        f"digest {digest[:12]}\nartifact {escape(str(output))}\nreport   {escape(str(report))}\nnext:",
        soft_wrap=True,
    )
    command = f"  skillguard serve --model {shlex.quote(model)} --artifacts {shlex.quote(str(output))}"
    command += "".join(f" {shlex.quote(flag)}" for flag in flags)
    console.print(command, soft_wrap=True, markup=False, highlight=False)
