"""How a calibration of cubes is shown."""

from collections.abc import Mapping
from typing import Any

from guards.calibration.detector_shown import (
    detector_table,
    rates_report,
    roc_plot,
    score_plot,
    separation_panels,
)
from guards.calibration.drawing import frame_label, png
from guards.calibration.shown import ShownTable
from guards.methods.cube.calibrate import CubeCalibration, FrameResult, LayerResult


def table(calibration: CubeCalibration) -> ShownTable:
    """One line a frame."""
    return detector_table(calibration.frames)


def report(calibration: CubeCalibration) -> dict[str, Any]:
    """By frame, with every layer that was looked at."""
    return {"frames": [_frame(result) for result in calibration.frames]}


def _layer(result: LayerResult) -> dict[str, Any]:
    return {
        "layer": result.fit.cube.layer,
        "auroc_threshold_part": result.auroc,
        "auroc": result.reported_auroc,
        "margin": result.margin,
        "tau": result.tau,
        "k": result.fit.cube.k,
        "key_vectors": result.fit.vectors,
        "floored_dimensions": result.fit.floored,
        "recall": result.recall.model_dump(),
        "false_abstention": result.false_abstention.model_dump(),
    }


def _frame(result: FrameResult) -> dict[str, Any]:
    return {
        **rates_report(result),
        "layer": result.chosen.fit.cube.layer,
        "tau": result.tau,
        "k": result.chosen.fit.cube.k,
        "layers": [_layer(layer) for layer in result.by_layer],
    }


def plots(calibration: CubeCalibration, skill: str, *_: object) -> Mapping[str, bytes]:
    """Score distributions with tau, ROC, and separation by layer."""
    return {
        "scores.png": score_plot(calibration.frames, skill, "score  max |x - mean| / deviation", logarithmic=True),
        "roc.png": roc_plot(calibration.frames, skill, calibration.options.max_false_abstention),
        "layers.png": _layers(calibration, skill),
    }


def _layers(calibration: CubeCalibration, skill: str) -> bytes:
    """Separation of every layer's cube, and what it would catch under the cap."""
    figure, separation, caught = separation_panels(skill, "layer")
    for frame in calibration.frames:
        layers = [layer.fit.cube.layer for layer in frame.by_layer]
        at = layers.index(frame.chosen.fit.cube.layer)
        columns = (
            (separation, [layer.reported_auroc for layer in frame.by_layer]),
            (caught, [layer.recall.rate for layer in frame.by_layer]),
        )
        for panel, values in columns:
            (line,) = panel.plot(layers, values, marker=".", label=frame_label(frame.frame))
            panel.plot(layers[at], values[at], marker="o", markersize=10, fillstyle="none", color=line.get_color())
            panel.set_xlabel("layer (ring: chosen)")
            panel.xaxis.get_major_locator().set_params(integer=True)
    caught.set_ylabel("recall under the false-abstention cap")
    caught.set_title("what each layer's cube would catch", fontsize=10)
    caught.legend(fontsize=8)
    return png(figure)
