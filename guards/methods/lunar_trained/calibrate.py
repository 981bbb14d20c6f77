"""Calibrates the trained variant of LUNAR: one layer, trained towards where a change of the variant redirect leads.

Layer, direction and strength are those of the change, and examples are dealt as its own were. So the two differ by how
the delta was found, and each is measured on texts that neither was fitted on.
"""

from collections.abc import Sequence
from functools import partial

from guards.artifact.pins import shown_digest
from guards.calibration.activations import Activations
from guards.calibration.corpus import FORGET_DEAL
from guards.calibration.material import read_material
from guards.calibration.sources import Source
from guards.methods.lunar.change import read_change
from guards.methods.lunar.guard import LunarGuard
from guards.methods.lunar_trained.entry import LUNAR_TRAINED
from guards.methods.lunar_trained.objective import Redirection, token_ratio
from guards.methods.lunar_trained.options import TrainedOptions
from guards.methods.rmu.calibrate import RmuCalibration, calibrate_by, sites
from guards.methods.rmu.recipe import Recipe

__all__ = ["calibrate", "sites"]

CLOSED_FORM = "the closed form"


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: TrainedOptions
) -> RmuCalibration:
    """A trained delta beside the closed form; see `calibrate_by`. Raises ArtifactError for a change that is none."""
    change = read_change(options.change, model)
    layer, solved, factors = change.layer, change.guard, change.factors
    digest = shown_digest(change.artifact.digest)
    push_D = factors.b_DR[:, 0].float().to(model.device)
    recipe = Recipe(
        LUNAR_TRAINED,
        lambda _: (layer,),
        lambda _, sides: Redirection(layer, push_D, token_ratio(sides)),
        lambda deltas: LunarGuard(deltas, solved.reference, solved.strength, None),
        deal=FORGET_DEAL,
        beside={CLOSED_FORM: {layer: factors.b_DR.float() @ factors.a_RF.float()}},
        files={"change": change.artifact.digest},
        warnings=partial(change.warnings, options.seed),
        notes=(f"layer, direction and strength are those of {change.artifact.name}, {digest}, {CLOSED_FORM}",),
    )
    return calibrate_by(recipe, model, forget, [*retain, *read_material(options.material).sources], options)
