"""Neuron Adjust (ESU, section 3.1): shifts pre-activations from the forget skill's Gaussian to the retain one.

Suffixes: T tokens, F feed-forward width (d_ff), S selected neurons of one layer.

For a selected neuron's value x, ``D = log N(x; mu_r, sigma_r) - log N(x; mu_f, sigma_f)``. Where D <= 0 the value is
replaced, with probability sigmoid(-D), by ``mu_r - sigma_r (x - mu_f) / sigma_f``: mapped to the retain Gaussian and
reflected about its mean. The draw is a hash of (seed, position, layer, neuron), so it does not depend on batching,
on a tensor-parallel split or on the engine.
"""

from dataclasses import dataclass, fields
from enum import StrEnum

import torch
from torch import Tensor, nn

from guards.calibration.selection import top_neurons
from guards.calibration.statistics import RunningMoments
from guards.core.verdict import Scope
from guards.errors import CalibrationError

SIGMA_FLOOR = 1e-6


class Draw(StrEnum):
    """`random` shifts with probability sigmoid(-D) where D <= 0 (the paper); `certain` always shifts there."""

    RANDOM = "random"
    CERTAIN = "certain"


@dataclass(frozen=True)
class LayerStatistics:
    """The selected neurons of one layer: indices int64 [S], the rest float32 [S]; deviations strictly positive."""

    neurons_S: Tensor
    forget_mean_S: Tensor
    forget_std_S: Tensor
    retain_mean_S: Tensor
    retain_std_S: Tensor


LAYER_FIELDS = tuple(field.name for field in fields(LayerStatistics))


@dataclass(frozen=True)
class NeuronAdjustGuard:
    """An intervention: Gaussian statistics of the selected neurons by layer."""

    layers_statistics: dict[int, LayerStatistics]
    fraction: float
    draw: Draw
    seed: int
    scope: Scope = Scope.BOTH

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with at least one selected neuron, ascending."""
        return tuple(sorted(self.layers_statistics))


def log_density_difference(x_TS: Tensor, layer: LayerStatistics) -> Tensor:
    """D, float32 [T, S]: log-density of x under the retain Gaussian minus that under the forget Gaussian."""
    forget = (x_TS - layer.forget_mean_S) / layer.forget_std_S
    retain = (x_TS - layer.retain_mean_S) / layer.retain_std_S
    return 0.5 * (forget.square() - retain.square()) + (layer.forget_std_S / layer.retain_std_S).log()


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser. Products wrap around in int64 alike on every device; masking makes shifts logical."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


_GOLDEN = -0x61C8864680B583EB


def layer_key(layer: int, seed: int) -> Tensor:
    """What tells a layer's draws from another's, int64 scalar."""
    return (_mix(torch.tensor(seed, dtype=torch.int64) + _GOLDEN) + layer) * _GOLDEN


def uniform(positions_T: Tensor, neurons_S: Tensor, key: Tensor) -> Tensor:
    """Counter-based draws in [0, 1), float32 [T, S]: splitmix64's finaliser over a layer's key, position and neuron."""
    row_T1 = _mix(key + positions_T.long()).unsqueeze(-1)
    bits_TS = _mix(row_T1 * _GOLDEN + neurons_S.long())
    return ((bits_TS >> 40) & 0xFFFFFF).float() * (1.0 / (1 << 24))


def adjust(
    x_TS: Tensor, layer: LayerStatistics, *, positions_T: Tensor, key: Tensor, draw: Draw
) -> tuple[Tensor, Tensor]:
    """Adjusted values in x's dtype, and which of them moved (bool), both [T, S]. Pure."""
    x = x_TS.float()
    difference = log_density_difference(x, layer)
    moves = difference <= 0
    if draw is Draw.RANDOM:
        moves &= uniform(positions_T, layer.neurons_S, key) < torch.sigmoid(-difference)
    target = layer.retain_mean_S - layer.retain_std_S * (x - layer.forget_mean_S) / layer.forget_std_S
    return torch.where(moves, target, x).to(x_TS.dtype), moves


class Adjuster(nn.Module):
    """The selected neurons of one layer, or of one rank's slice of it, which begins at neuron `first`.

    Its tensors are buffers, which a compiled model reads as inputs instead of baking them in.
    """

    local_S: Tensor
    key: Tensor

    def __init__(self, layer: LayerStatistics, first: int, index: int, draw: Draw, seed: int) -> None:
        super().__init__()
        for name in LAYER_FIELDS:
            self.register_buffer(name, getattr(layer, name), persistent=False)
        device = layer.neurons_S.device
        self.register_buffer("local_S", layer.neurons_S - first, persistent=False)
        self.register_buffer("key", layer_key(index, seed).to(device), persistent=False)
        self._draw = draw

    def forward(self, x_TF: Tensor, positions_T: Tensor, on_T: Tensor) -> Tensor:
        """Changes x in place where `on_T` says so; returns moved neurons per token, float32 [T, 1], NaN where x was not
        finite.
        """
        layer = LayerStatistics(*(getattr(self, name) for name in LAYER_FIELDS))
        x_TS = x_TF.index_select(-1, self.local_S)
        adjusted, moved = adjust(x_TS, layer, positions_T=positions_T, key=self.key, draw=self._draw)
        adjusted, moved = torch.where(on_T[:, None], adjusted, x_TS), moved & on_T[:, None]
        x_TF.index_copy_(-1, self.local_S, adjusted)
        return torch.where(
            torch.isfinite(adjusted).all(dim=-1, keepdim=True), moved.sum(dim=-1, keepdim=True).float(), torch.nan
        )


class NeuronAdjustFitter:
    """Streams pre-activations of all tokens of both sets; keeps two moments per neuron and layer."""

    def __init__(self, layers: int, width: int) -> None:
        self._forget = [RunningMoments(width) for _ in range(layers)]
        self._retain = [RunningMoments(width) for _ in range(layers)]

    def update(self, layer: int, x_TF: Tensor, *, forget: bool) -> None:
        """Adds tokens of one layer. Raises CalibrationError on a non-finite value."""
        if not bool(torch.isfinite(x_TF).all()):
            raise CalibrationError(f"layer {layer}: a pre-activation is not finite in this dtype on this data")
        (self._forget if forget else self._retain)[layer].update(x_TF)

    def differences(self) -> Tensor:
        """``mu_f - mu_r`` of every neuron, float64 [layers, F]: what neurons are selected by (signed, as ESU)."""
        return torch.stack([f.mean - r.mean for f, r in zip(self._forget, self._retain, strict=True)])

    def finish(self, fraction: float, *, draw: Draw = Draw.RANDOM, seed: int = 0) -> NeuronAdjustGuard:
        """Selects ``int(fraction * layers * F)`` neurons over all layers together.

        Raises CalibrationError below two tokens on a side, or when the fraction selects no neuron.
        """
        if min(self._forget[0].count, self._retain[0].count) < 2:
            raise CalibrationError("got fewer than 2 tokens on one side, wanted forget and retain text")
        statistics = {}
        for layer, neurons in top_neurons(self.differences(), fraction).items():
            forget, retain = self._forget[layer], self._retain[layer]
            statistics[layer] = LayerStatistics(
                neurons,
                forget.mean[neurons].float(),
                forget.std()[neurons].float().clamp_min(SIGMA_FLOOR),
                retain.mean[neurons].float(),
                retain.std()[neurons].float().clamp_min(SIGMA_FLOOR),
            )
        return NeuronAdjustGuard(statistics, fraction, draw, seed)
