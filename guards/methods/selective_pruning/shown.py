"""How a calibration of Selective Pruning is shown."""

from collections.abc import Mapping
from typing import Any

from guards.calibration.drawing import neurons_by_layer
from guards.calibration.shown import ShownTable
from guards.methods.selective_pruning.calibrate import PruningCalibration


def table(calibration: PruningCalibration) -> ShownTable:
    """One line a layer."""
    columns = calibration.feed_forward_by_layer, calibration.attention_by_layer
    rows = [(str(layer), *map(str, counts)) for layer, counts in enumerate(zip(*columns, strict=True))]
    headings = ("layer", "feed-forward neurons pruned", "attention neurons pruned")
    return ShownTable(headings, (*rows, ("all", *(str(sum(column)) for column in columns))))


def report(calibration: PruningCalibration) -> dict[str, Any]:
    """Neurons by layer, and the tokens of each side in a step."""
    return {
        "feed_forward_by_layer": list(calibration.feed_forward_by_layer),
        "attention_by_layer": list(calibration.attention_by_layer),
        "tokens": dict(calibration.tokens),
    }


def plots(calibration: PruningCalibration, skill: str, *_: object) -> Mapping[str, bytes]:
    """Pruned neurons by layer, attention's only where any is pruned."""
    drawn = {"neurons.png": neurons_by_layer(calibration.feed_forward_by_layer, skill, "pruned feed-forward")}
    if any(calibration.attention_by_layer):
        drawn["attention.png"] = neurons_by_layer(calibration.attention_by_layer, skill, "pruned attention")
    return drawn
