"""How the toy halving's calibration is shown."""

from typing import Any

from guards.calibration.finished import Calibration
from guards.calibration.shown import ShownTable


def table(calibration: Calibration) -> ShownTable:
    return ShownTable(("toy halving at layer",), ((str(calibration.guard.layers[0]),),))


def report(calibration: Calibration) -> dict[str, Any]:
    return {"toy_layer": calibration.guard.layers[0]}


def plots(calibration: Calibration, *_: object) -> dict[str, bytes]:
    return {}
