"""How a calibration of LUNAR is shown."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from guards.calibration.corpus import SIDES
from guards.calibration.drawing import FORGET_COLOUR, RETAIN_COLOUR, new_figure, png
from guards.calibration.shown import ShownTable
from guards.methods.lunar.calibrate import LunarCalibration

HEADINGS = ("layer", "ridge", "forget w.k", "retain w.k", "forget: as reference", "retain: as before", "")


def table(calibration: LunarCalibration) -> ShownTable:
    """One line a layer that was tried, below what is said without a change."""
    rows = [
        (
            str(each.layer),
            f"{each.ridge:g}",
            *(f"{each.said[side]:.3f}" for side in SIDES),
            f"{each.likeness.alike:.3f}",
            f"{each.likeness.kept:.3f}",
            "chosen" if each is calibration.chosen else "",
        )
        for each in calibration.candidates
    ]
    without = ("none", "-", "-", "-", f"{calibration.unchanged.alike:.3f}", f"{calibration.unchanged.kept:.3f}", "")
    reported = calibration.reported.changed
    caption = (
        f"cosines of answers; reference answers have {calibration.refusal.own:.3f} with one another; report part: "
        f"{reported.alike:.3f} and {reported.kept:.3f}; w.k at last tokens tells the sides with AUROC "
        f"{calibration.auroc:.3f}"
    )
    return ShownTable(HEADINGS, (without, *rows), caption)


def report(calibration: LunarCalibration) -> dict[str, Any]:
    """Every layer that was tried, with some answers, and the chosen one's figures on the report part."""
    return {
        "layer": calibration.chosen.layer,
        "candidates": [
            {
                "layer": each.layer,
                "ridge": each.ridge,
                "said": dict(each.said),
                **asdict(each.likeness),
                "deviation": each.likeness.deviation,
                "answers": list(each.quoted),
            }
            for each in calibration.candidates
        ],
        "unchanged": asdict(calibration.unchanged),
        "unchanged_answers": {asked: list(answers) for asked, answers in calibration.quoted.items()},
        "reference": {"own": calibration.refusal.own, "told": calibration.refusal.told},
        "reported": asdict(calibration.reported),
        "way": calibration.reported.way(calibration.refusal.own),
        "auroc": calibration.auroc,
    }


def plots(calibration: LunarCalibration, skill: str, *_: object) -> Mapping[str, bytes]:
    """What each layer's change does to answers."""
    figure, (panel,) = new_figure(1, 1, 5.0, 3.2)
    of = calibration.candidates
    for values, colour, label in (
        ([each.likeness.alike for each in of], FORGET_COLOUR, "forget: as reference"),
        ([each.likeness.kept for each in of], RETAIN_COLOUR, "retain: as before"),
    ):
        panel.plot([each.layer for each in of], values, "o-", color=colour, label=label)
    for level, style in ((calibration.unchanged.alike, ":"), (calibration.refusal.own, "--")):
        panel.axhline(level, linestyle=style, color=FORGET_COLOUR)
    panel.set_xlabel("layer")
    panel.set_ylabel("cosine of answers")
    panel.set_title(f"{skill}: from no change (dotted) to reference answers (dashed)", fontsize=9)
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
    return {"layers.png": png(figure)}
