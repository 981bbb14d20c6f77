"""What `skillguard calibrate` prints when it is done."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guards.artifact.manifest import Rate
from guards.calibration.finished import Calibration
from guards.methods.cube.calibrate import KSDCalibration
from guards.methods.neuron_adjust.calibrate import NeuronAdjustCalibration
from guards.methods.pooled.calibrate import PooledCalibration
from guards.methods.selective_pruning.calibrate import PruneCalibration
from server.cli.flags import as_flags


def _interval(rate: Rate) -> str:
    return f"{rate.rate:.3f} [{rate.low:.3f} {rate.high:.3f}]"


def _ksd_table(calibration: KSDCalibration | PooledCalibration) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), caption="held-out rates with 95 % intervals")
    for heading in ("frame", "layers", "tau", "recall", "false abstention", "AUROC"):
        table.add_column(heading, no_wrap=heading != "frame")
    for result in calibration.frames:
        table.add_row(
            escape(repr(result.frame)),
            escape(result.where.split(" ", 1)[1]),
            f"{result.tau:.3f}",
            _interval(result.recall),
            _interval(result.false_abstention),
            f"{result.auroc:.4f}",
        )
    return table


def _neuron_table(calibration: NeuronAdjustCalibration) -> Table:
    table = Table("layer", "neurons adjusted", box=SIMPLE_HEAD)
    for layer, count in enumerate(calibration.neurons_by_layer):
        table.add_row(str(layer), str(count))
    table.add_row("all", str(sum(calibration.neurons_by_layer)))
    return table


def _prune_table(calibration: PruneCalibration) -> Table:
    table = Table("layer", "feed-forward neurons pruned", "attention neurons pruned", box=SIMPLE_HEAD)
    columns = calibration.feed_forward_by_layer, calibration.attention_by_layer
    for layer, counts in enumerate(zip(*columns, strict=True)):
        table.add_row(str(layer), *map(str, counts))
    table.add_row("all", *(str(sum(column)) for column in columns))
    return table


def print_summary(
    calibration: Calibration,
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
    if isinstance(calibration, KSDCalibration | PooledCalibration):
        console.print(_ksd_table(calibration))
    if isinstance(calibration, NeuronAdjustCalibration):
        console.print(_neuron_table(calibration))
    if isinstance(calibration, PruneCalibration):
        console.print(_prune_table(calibration))
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
