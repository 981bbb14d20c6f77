"""The calibrations that are compared."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from guards.calibration.activations import Activations
from guards.calibration.finished import Calibration
from guards.calibration.sources import Source
from guards.methods.cube.calibrate import calibrate as calibrate_cubes
from guards.methods.cube.guard import CubeGuard
from guards.methods.cube.options import CubeOptions
from guards.methods.spans.calibrate import calibrate as calibrate_spans
from guards.methods.spans.options import SpanOptions


class Calibrate(Protocol):
    """Fits a guard in some frames. Raises CalibrationError or DataError where the examples allow none."""

    def __call__(
        self, model: Activations, forget: Sequence[Source], retain: Sequence[Source], frames: tuple[str, ...]
    ) -> Calibration: ...


def paper(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], frames: tuple[str, ...]
) -> Calibration:
    """ESU's cube: last layer, last token, tau = k, the smallest cube that holds what was fitted.

    The paper sets tau to alpha times k by hand for every skill; alpha is 1 here. It knows no cap on false abstention.
    """
    options = CubeOptions(frames=frames, layer=model.identity.layers - 1, max_false_abstention=0.99)
    found = calibrate_cubes(model, forget, retain, options)
    assert isinstance(found.guard, CubeGuard)
    cubes = tuple(replace(cube, tau=cube.k) for cube in found.guard.cubes)
    return replace(found, guard=replace(found.guard, cubes=cubes))


def cube(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], frames: tuple[str, ...]
) -> Calibration:
    """Cubes with tau and layer chosen on held-out train prompts, under a cap on false abstention."""
    return calibrate_cubes(model, forget, retain, CubeOptions(frames=frames))


def spans(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], frames: tuple[str, ...]
) -> Calibration:
    """The default of `calibrate ksd`: a direction in the key vectors, accumulated along the text."""
    return calibrate_spans(model, forget, retain, SpanOptions(frames=frames))
