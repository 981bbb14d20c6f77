"""The calibrations that the table compares, by name. Another is one line."""

from dataclasses import dataclass, field, replace

from benchmarks.real_text.skills import FRAME
from guards.activations import Activations
from guards.calibrate_ksd import calibrate_ksd
from guards.calibrate_options import KSDOptions
from guards.data import Source
from guards.ksd import KSDGuard


@dataclass(frozen=True)
class Variant:
    """Options of a calibration. `last_layer`: they are for the model's last layer, whatever its number.

    `alpha`: tau is this times k, the smallest cube of the fitted vectors (ESU), whatever the options made of it.
    """

    options: KSDOptions = field(default_factory=KSDOptions)
    last_layer: bool = False
    alpha: float | None = None


VARIANTS = {
    "paper": Variant(KSDOptions(max_false_abstention=0.99), last_layer=True, alpha=1.0),
    "default": Variant(),
}
"""The paper sets alpha by hand for every skill; 1 is its cube as fitted. It knows no cap on false abstention."""


def calibrate(
    model: Activations, variant: Variant, forget: Source, retain: list[Source]
) -> tuple[KSDGuard, tuple[str, ...]]:
    """The guard and what its calibration warns of. Raises CalibrationError where the examples allow none."""
    options = replace(variant.options, frames=(FRAME,), progress=True)
    if variant.last_layer:
        options = replace(options, layer=model.identity.layers - 1)
    calibration = calibrate_ksd(model, [forget], retain, options)
    guard = calibration.guard
    assert isinstance(guard, KSDGuard)
    if variant.alpha is None:
        return guard, calibration.warnings
    cubes = tuple(replace(cube, tau=variant.alpha * cube.k) for cube in guard.cubes)
    return replace(guard, cubes=cubes), ()
