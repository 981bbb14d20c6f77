"""Calibrates probes: as a guard over spans, with other directions."""

from collections.abc import Sequence
from functools import partial

from guards.calibration.activations import Activations
from guards.calibration.sources import Source
from guards.methods.probe.entry import PROBE
from guards.methods.probe.fit import dispersed_layers, fit_probes, require_sklearn
from guards.methods.probe.options import ProbeOptions
from guards.methods.spans.calibrate import SpanCalibration, calibrate_by, sites
from guards.methods.spans.recipe import LAST_TOKEN, STRETCHES, Recipe

__all__ = ["calibrate", "sites"]


def recipe(count: int, options: ProbeOptions) -> Recipe:
    """How probes of a model of `count` layers are fitted. Raises CalibrationError where scikit-learn is missing."""
    require_sklearn()
    tokens = LAST_TOKEN if options.aggregation == "last" else STRETCHES
    return Recipe(PROBE, tokens, dispersed_layers, partial(fit_probes, count=count, windows=tokens.windows))


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: ProbeOptions
) -> SpanCalibration:
    """A guard of probes at several layers; see `calibrate_by`."""
    return calibrate_by(recipe(model.identity.layers, options), model, forget, retain, options)
