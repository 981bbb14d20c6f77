"""How a calibration of projections is shown: every beta that was tried, and every probe."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from guards.calibration.drawing import FORGET_COLOUR, RETAIN_COLOUR, new_figure, png
from guards.calibration.shown import ShownTable
from guards.methods.probe.shown import probes_figure, probes_report
from guards.methods.probe_project.calibrate import ProjectCalibration

HEADINGS = ("layers", "beta", "forget: square distance left", "retain: moved", "")


def table(calibration: ProjectCalibration) -> ShownTable:
    """One line a beta."""
    layers = ", ".join(map(str, calibration.guard.layers))
    rows = [
        (layers, f"{each.beta:g}", f"{each.left:.3f}", f"{each.moved:.3f}", "chosen" * (each is calibration.chosen))
        for each in calibration.candidates
    ]
    beyond = "; ".join(
        f"{layer}: {of['forget']:.3f} of forget and {of['retain']:.3f} of retain"
        for layer, of in calibration.beyond.items()
        if layer in calibration.guard.layers
    )
    caption = (
        f"report part: {calibration.reported.left:.3f} of the square distance left, retain prompts moved "
        f"{calibration.reported.moved:.3f} of their variance. Held-out windows beyond the boundary, by layer: {beyond}"
    )
    return ShownTable(HEADINGS, tuple(rows), caption)


def report(calibration: ProjectCalibration) -> dict[str, Any]:
    """Every beta, the chosen one's figures on the report part, and every probe that was looked at."""
    return {
        "layers": list(calibration.guard.layers),
        "beta": calibration.chosen.beta,
        "candidates": [{**asdict(each), "deviation": each.deviation} for each in calibration.candidates],
        "left": calibration.reported.left,
        "moved": calibration.reported.moved,
        "beyond": {str(layer): dict(of) for layer, of in calibration.beyond.items()},
        **probes_report(calibration.probes, calibration.guard.layers),
    }


def plots(calibration: ProjectCalibration, skill: str, *_: object) -> Mapping[str, bytes]:
    """What each beta does at the last block, and the probes by layer."""
    figure, (panel,) = new_figure(1, 1, 5.0, 3.2)
    of, probes = calibration.candidates, calibration.probes
    for values, colour, label in (
        ([each.left for each in of], FORGET_COLOUR, "forget: square distance left"),
        ([each.moved for each in of], RETAIN_COLOUR, "retain: moved"),
    ):
        panel.plot([each.beta for each in of], values, "o-", color=colour, label=label)
    panel.set_xlabel("beta")
    panel.set_title(f"{skill}: moved at the last block", fontsize=10)
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
    terms = [each.term for each in probes.probes]
    return {
        "betas.png": png(figure),
        "probes.png": probes_figure(terms, probes.measured, calibration.guard.layers, skill),
    }
