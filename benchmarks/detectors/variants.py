"""The calibrations that are compared."""

from collections.abc import Callable
from dataclasses import replace

from benchmarks.detectors.plans import Fitting
from guards.calibration.activations import Activations
from guards.calibration.finished import Calibration
from guards.methods.cube.calibrate import calibrate as calibrate_cubes
from guards.methods.cube.guard import CubeGuard
from guards.methods.cube.options import CubeOptions
from guards.methods.spans.calibrate import calibrate as calibrate_spans
from guards.methods.spans.options import SpanOptions

Calibrate = Callable[[Activations, Fitting], Calibration]
"""Fits a guard. Raises CalibrationError where the examples allow none."""


def paper(model: Activations, of: Fitting) -> Calibration:
    """ESU's cube: last layer, last token, tau = k, the smallest cube that holds what was fitted.

    The paper sets tau to alpha times k by hand for every skill; alpha is 1 here. It knows no cap on false abstention.
    """
    last = model.identity.layers - 1
    options = CubeOptions(frames=of.frames, layer=last, max_false_abstention=0.99, progress=True)
    found = calibrate_cubes(model, of.forget, of.retain, options)
    assert isinstance(found.guard, CubeGuard)
    cubes = tuple(replace(cube, tau=cube.k) for cube in found.guard.cubes)
    return replace(found, guard=replace(found.guard, cubes=cubes))


def cube(model: Activations, of: Fitting) -> Calibration:
    """Cubes with tau and layer chosen on held-out train prompts, under a cap on false abstention."""
    return calibrate_cubes(model, of.forget, of.retain, CubeOptions(frames=of.frames, progress=True))


def spans(model: Activations, of: Fitting) -> Calibration:
    """The default of `calibrate ksd`: a direction in the key vectors, accumulated along the text."""
    return calibrate_spans(model, of.forget, of.retain, SpanOptions(frames=of.frames, progress=True))
