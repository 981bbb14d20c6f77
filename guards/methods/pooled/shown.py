"""How a calibration of a pooled discriminant is shown."""

from collections.abc import Mapping
from typing import Any

from guards.calibration.detector_shown import (
    detector_table,
    rates_report,
    roc_plot,
    score_plot,
    separation_panels,
)
from guards.calibration.drawing import RETAIN_COLOUR, TAU_COLOUR, png
from guards.calibration.shown import ShownTable
from guards.methods.pooled.calibrate import Candidate, PooledCalibration


def table(calibration: PooledCalibration) -> ShownTable:
    """One line a frame."""
    return detector_table(calibration.frames)


def report(calibration: PooledCalibration) -> dict[str, Any]:
    """What was chosen, by frame, and among what."""
    return {
        "layers": list(calibration.chosen.layers),
        "tau": calibration.chosen.tau,
        "key_vectors": calibration.vectors,
        "frames": [rates_report(result) for result in calibration.frames],
        "candidates": [_candidate(each) for each in calibration.candidates],
    }


def _candidate(each: Candidate) -> dict[str, Any]:
    return {
        "layers": list(each.layers),
        "auroc_threshold_part": each.auroc,
        "auroc": each.reported_auroc,
        "margin": each.margin,
        "tau": each.tau,
        "floored_dimensions": each.floored,
        "recall": each.recall.model_dump(),
        "false_abstention": each.false_abstention.model_dump(),
    }


def plots(calibration: PooledCalibration, skill: str, *_: object) -> Mapping[str, bytes]:
    """Score distributions with tau, ROC, and separation by set of layers."""
    return {
        "scores.png": score_plot(
            calibration.frames, skill, "score  0: mean of forget, 1: of retain", logarithmic=False
        ),
        "roc.png": roc_plot(calibration.frames, skill, calibration.options.max_false_abstention),
        "layers.png": _candidates(calibration, skill),
    }


def _candidates(calibration: PooledCalibration, skill: str) -> bytes:
    """Separation of every set of layers, and what it would catch."""
    figure, separation, caught = separation_panels(skill, "layers")
    names = [", ".join(map(str, each.layers)) for each in calibration.candidates]
    colours = [TAU_COLOUR if each is calibration.chosen else RETAIN_COLOUR for each in calibration.candidates]
    for panel, values in (
        (separation, [each.reported_auroc for each in calibration.candidates]),
        (caught, [each.recall.rate for each in calibration.candidates]),
    ):
        for name, value, colour in zip(names, values, colours, strict=True):
            panel.plot([name], [value], marker="o", color=colour)
        panel.set_xlabel("layers (black: chosen)")
    caught.set_ylabel("recall")
    caught.set_title("what each set of layers would catch", fontsize=10)
    return png(figure)
