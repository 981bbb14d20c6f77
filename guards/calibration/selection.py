"""Which neurons a method acts on: the best of all layers together."""

import math

import torch
from torch import Tensor

from guards.errors import CalibrationError


def count_of(fraction: float, neurons: int, left: int | None = None) -> int:
    """``int(fraction * neurons)``. Raises CalibrationError where that is none, or more than are left (default: all)."""
    count, left = math.floor(fraction * neurons + 1e-9), neurons if left is None else left  # 0.29 * 100 is 28.999...
    if not 0 < count <= left:
        raise CalibrationError(
            f"fraction {fraction} selects {count} of {neurons} neurons, {left} of them left: give one in "
            f"(0, {left / neurons:.3g}] that selects some"
        )
    return count


def top_neurons(scores_LF: Tensor, fraction: float) -> dict[int, Tensor]:
    """The ``int(fraction * L * F)`` neurons of the largest scores: by layer, ascending indices int64, empty layers out.

    Of equal scores the earlier layer and neuron is taken. A neuron of score minus infinity is never taken. Raises
    CalibrationError when the fraction selects no neuron, or more than there are.
    """
    count = count_of(fraction, scores_LF.numel(), int((scores_LF > -torch.inf).sum()))
    chosen = torch.zeros(scores_LF.numel(), dtype=torch.bool)
    chosen[scores_LF.flatten().sort(descending=True, stable=True).indices[:count]] = True
    by_layer = {layer: row.nonzero().flatten() for layer, row in enumerate(chosen.view_as(scores_LF))}
    return {layer: neurons for layer, neurons in by_layer.items() if neurons.numel()}
