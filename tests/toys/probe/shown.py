"""How the toy probe's calibration is shown."""

from typing import Any

from guards.calibration.finished import Calibration
from guards.calibration.shown import ShownTable


def table(calibration: Calibration) -> ShownTable:
    return ShownTable(("toy probe at layers",), ((", ".join(map(str, calibration.guard.layers)),),))


def report(calibration: Calibration) -> dict[str, Any]:
    return {"toy_layers": list(calibration.guard.layers)}


def plots(calibration: Calibration, *_: object) -> dict[str, bytes]:
    return {"toy.png": b"drawn"}
