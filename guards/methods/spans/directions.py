"""The directions of Key Space Detection over spans: each over a few neighbouring layers together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from guards.calibration.having import candidate_layers
from guards.methods.spans.entry import SPANS
from guards.methods.spans.guard import DirectionFitter, LayerWeights, Windows
from guards.methods.spans.held import Held
from guards.methods.spans.recipe import STRETCHES, Direction, Recipe

TOGETHER = (2, 3)
"""Neighbours among them over which a direction is tried."""


def layer_sets(layers: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every run of TOGETHER neighbours, or all where there are fewer."""
    return [layers[start : start + count] for count in TOGETHER for start in range(len(layers) - count + 1)] or [layers]


@dataclass(frozen=True)
class Neighbours:
    """One direction over each of `layer_sets`. `floored`: dimensions whose deviation was raised, by layer."""

    sets: Sequence[tuple[LayerWeights, ...]]
    floored: Mapping[int, int]

    def directions(self, _: Held) -> "Neighbours":
        """As they were fitted."""
        return self

    @property
    def candidates(self) -> list[Direction]:
        """Each set by itself."""
        return [Direction(terms, one_C) for terms, one_C in zip(self.sets, torch.eye(len(self.sets)), strict=True)]

    def note(self, layers: Sequence[int]) -> str:
        return f"deviation floored in {sum(self.floored[layer] for layer in layers)} dimensions"


def fit(forget: Windows, retain: Windows, layers: Sequence[int]) -> Neighbours:
    """Raises CalibrationError as `DirectionFitter` does."""
    fitter = DirectionFitter(forget, retain)
    return Neighbours([fitter.finish(each) for each in layer_sets(tuple(layers))], fitter.floored)


RECIPE = Recipe(SPANS, STRETCHES, candidate_layers, fit)
