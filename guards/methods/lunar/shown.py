"""How a calibration of LUNAR is shown."""

from collections.abc import Mapping
from typing import Any

from guards.calibration.drawing import FORGET_COLOUR, RETAIN_COLOUR, new_figure, png
from guards.calibration.shown import ShownTable
from guards.methods.lunar.calibrate import LunarCalibration

HEADINGS = ("layer", "ridge", "forget w.k", "retain w.k", "forget: way left", "retain: moved", "")


def table(calibration: LunarCalibration) -> ShownTable:
    """One line a layer that was tried."""
    rows = [
        (
            str(each.layer),
            f"{each.ridge:g}",
            *(f"{each.said[side]:.3f}" for side in ("forget", "retain")),
            f"{each.left:.3f}",
            f"{each.moved:.3f}",
            "chosen" if each is calibration.chosen else "",
        )
        for each in calibration.candidates
    ]
    caption = (
        f"report part: {calibration.report_left:.3f} of the way left, retain prompts moved "
        f"{calibration.report_moved:.3f} of their spread; w.k at last tokens tells the sides with AUROC "
        f"{calibration.auroc:.3f}"
    )
    return ShownTable(HEADINGS, tuple(rows), caption)


def report(calibration: LunarCalibration) -> dict[str, Any]:
    """Every layer that was tried, and the chosen one's figures on the report part."""
    return {
        "layer": calibration.chosen.layer,
        "candidates": [
            {
                "layer": each.layer,
                "ridge": each.ridge,
                "said": dict(each.said),
                "left": each.left,
                "moved": each.moved,
                "deviation": each.deviation,
            }
            for each in calibration.candidates
        ],
        "left": calibration.report_left,
        "moved": calibration.report_moved,
        "auroc": calibration.auroc,
    }


def plots(calibration: LunarCalibration, skill: str, *_: object) -> Mapping[str, bytes]:
    """What each layer's change does at the last block."""
    figure, (panel,) = new_figure(1, 1, 5.0, 3.2)
    of = calibration.candidates
    for values, colour, label in (
        ([each.left for each in of], FORGET_COLOUR, "forget: way left"),
        ([each.moved for each in of], RETAIN_COLOUR, "retain: moved"),
    ):
        panel.plot([each.layer for each in of], values, "o-", color=colour, label=label)
    panel.set_xlabel("layer")
    panel.set_title(f"{skill}: redirected at the last block", fontsize=10)
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
    return {"layers.png": png(figure)}
