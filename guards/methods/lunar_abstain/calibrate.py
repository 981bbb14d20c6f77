"""Calibrates the gate of a LUNAR change as a detector: as a guard over spans, with weights that are given.

Suffixes: F feed-forward width (d_ff), N windows.

``w.k`` is how much of a token the change takes for the skill's: 1 as the texts that it was solved for, 0 as the
others. It reads key vectors, and the change writes what comes behind them, so it reads the same whether that acts or
not. Which of the two answers a text is then a tenant's policy. What is fitted here is one scale; taus, rates and
canaries are those of any guard over spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from guards.artifact.pins import shown_digest
from guards.artifact.store import Artifact
from guards.calibration.activations import Activations
from guards.calibration.sources import Source
from guards.errors import CalibrationError
from guards.methods.lunar.change import read_change
from guards.methods.lunar_abstain.entry import LUNAR_ABSTAIN
from guards.methods.lunar_abstain.options import AbstainOptions
from guards.methods.spans.calibrate import SpanCalibration, calibrate_by, sites
from guards.methods.spans.guard import NO_GAP, LayerWeights, Windows, shares
from guards.methods.spans.held import Held
from guards.methods.spans.recipe import STRETCHES, Direction, Recipe

__all__ = ["calibrate", "sites"]


@dataclass(frozen=True)
class Gate:
    """One direction, that of `change`. `forget` and `retain` are the means of w.k over each side's windows."""

    term: LayerWeights
    change: Artifact
    forget: float
    retain: float

    @property
    def sets(self) -> list[tuple[LayerWeights, ...]]:
        """Itself."""
        return [(self.term,)]

    @property
    def candidates(self) -> list[Direction]:
        """Itself."""
        return [Direction((self.term,), torch.ones(1))]

    def directions(self, _: Held) -> "Gate":
        """There is no choice."""
        return self

    def note(self, _: Sequence[int]) -> str:
        """Whose gate it is."""
        return (
            f"by one scale: the weights are w of {self.change.name}, {shown_digest(self.change.digest)}, with w.k "
            f"{self.forget:.3f} on forget and {self.retain:.3f} on retain windows"
        )


def scaled(forget: Windows, retain: Windows, layers: Sequence[int], *, w_F: Tensor, change: Artifact) -> Gate:
    """w at its one layer, scaled so that a value is 0 at the mean of forget windows and 1 at that of retain ones.

    Raises CalibrationError where forget windows do not have the larger mean.
    """
    (layer,) = layers
    means = [
        float(2 * share_N.cpu() @ (side.key_NF[layer].double().cpu() @ w_F.double()))
        for side, share_N in zip((forget, retain), shares(forget, retain), strict=True)
    ]
    gap = means[0] - means[1]
    if not gap > NO_GAP:
        raise CalibrationError(
            f"w.k of {change.name} is {means[0]:.3f} on forget and {means[1]:.3f} on retain windows, wanted it larger "
            "on forget ones: give the examples that the change was calibrated with"
        )
    return Gate(LayerWeights(layer, (-w_F.double() / gap).float(), -means[0] / gap), change, *means)


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: AbstainOptions
) -> SpanCalibration:
    """A guard that judges by w.k of a change; see `calibrate_by`. Raises ArtifactError for a change that is none."""
    change = read_change(options.change, model)
    fit = partial(scaled, w_F=change.factors.a_RF[0].float(), change=change.artifact)
    warnings = partial(change.warnings, options.seed)
    recipe = Recipe(LUNAR_ABSTAIN, STRETCHES, lambda _: (change.layer,), fit, warnings)
    return calibrate_by(recipe, model, forget, retain, options)
