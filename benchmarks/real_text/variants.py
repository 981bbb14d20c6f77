"""The calibrations that the benchmarks compare."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from benchmarks.real_text.ratios import Detector
from benchmarks.real_text.skills import FRAME
from guards.calibration.activations import Activations
from guards.calibration.sources import Source
from guards.methods.cube.calibrate import calibrate as calibrate_cubes
from guards.methods.cube.guard import CubeGuard
from guards.methods.cube.options import CubeOptions
from guards.methods.pooled.calibrate import calibrate as calibrate_pooled
from guards.methods.pooled.guard import PooledGuard
from guards.methods.pooled.options import PooledOptions


@dataclass(frozen=True)
class Fitted:
    """A guard, and what its calibration warns of."""

    guard: Detector
    warnings: tuple[str, ...] = ()


class Calibrate(Protocol):
    """Fits a guard in some frames; without any, in those that the calibration takes by itself.

    Raises CalibrationError or DataError where the examples allow none.
    """

    def __call__(
        self, model: Activations, forget: Sequence[Source], retain: Sequence[Source], frames: tuple[str, ...]
    ) -> Fitted: ...


def paper(model: Activations, forget: Sequence[Source], retain: Sequence[Source], frames: tuple[str, ...]) -> Fitted:
    """ESU's cube: last layer, last token, tau = k, the smallest cube that holds what was fitted.

    The paper sets tau to alpha times k by hand for every skill; alpha is 1 here. It knows no cap on false abstention.
    """
    options = CubeOptions(frames=frames, layer=model.identity.layers - 1, max_false_abstention=0.99)
    guard = calibrate_cubes(model, forget, retain, options).guard
    assert isinstance(guard, CubeGuard)
    return Fitted(replace(guard, cubes=tuple(replace(cube, tau=cube.k) for cube in guard.cubes)))


def cube(model: Activations, forget: Sequence[Source], retain: Sequence[Source], frames: tuple[str, ...]) -> Fitted:
    """Cubes with tau and layer chosen on held-out train prompts, under a cap on false abstention."""
    found = calibrate_cubes(model, forget, retain, CubeOptions(frames=frames))
    assert isinstance(found.guard, CubeGuard)
    return Fitted(found.guard, found.warnings)


def pooled(model: Activations, forget: Sequence[Source], retain: Sequence[Source], frames: tuple[str, ...]) -> Fitted:
    """The default: a discriminant on the mean key vector of the prompt."""
    found = calibrate_pooled(model, forget, retain, PooledOptions(frames=frames))
    assert isinstance(found.guard, PooledGuard)
    return Fitted(found.guard, found.warnings)


@dataclass(frozen=True)
class Variant:
    """A calibration and the frames it is given."""

    calibrate: Calibrate
    frames: tuple[str, ...]


VARIANTS = {
    "paper": Variant(paper, (FRAME,)),
    "cube": Variant(cube, (FRAME,)),
    "default": Variant(pooled, ()),
}
"""What the table compares, by name. All are measured in FRAME, which is one of the default's own."""
