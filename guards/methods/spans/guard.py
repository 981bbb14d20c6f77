"""Key Space Detection over spans: one direction in the key vectors of several layers, accumulated along the text.

Suffixes: T tokens, F feed-forward width (d_ff), N key vectors, L layers.

A cube asks of each of d_ff dimensions alone whether the last token's key vector lies within the skill. One direction
tells the skill from the rest far better: Fisher's linear discriminant, with a within-class covariance shrunk towards
its diagonal (Ledoit and Wolf 2004), over the mean key vectors of short windows of text. A token's value

    v(x) = sum_l w_l . x_l - o_l

is 0 at the mean of the skill's windows and 1 at the others'. A text holds the skill where some stretch of it has
more evidence, 1 - v, than other text gathers (`guards.contract.spans.Rise`), which text beside it does not dilute.
Short texts gather too little, so the mean of a message is judged as well (`MessageMean`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guards.calibration.statistics import MIN_VECTORS, floor_sigma
from guards.contract.spans import MessageMean, Rise
from guards.core.verdict import Scope
from guards.errors import CalibrationError

SHRINKAGE = 0.3
"""Share of the diagonal in the within-class covariance; .1 measured alike, .03 worse beside other text."""
CHUNK = 4096
"""Dimensions at a time in float64: bounds the memory of a fit."""

Strategy = Rise | MessageMean


@dataclass(frozen=True)
class LayerWeights:
    """One layer's part of the direction: `weight_F` float32, and the offset o_l."""

    layer: int
    weight_F: Tensor
    offset: float


@dataclass(frozen=True)
class Judgement:
    """A way of accumulating values over a text, and the score at or below which it is the skill."""

    over_tokens: Strategy
    tau: float

    @property
    def label(self) -> str:
        """What is judged, and how."""
        side = "answer" if self.over_tokens.written else "prompt"
        return f"{side}, {'span' if isinstance(self.over_tokens, Rise) else 'mean'}"


@dataclass(frozen=True)
class SpanGuard:
    """A detector of one part for each judgement. Layers ascend."""

    terms: tuple[LayerWeights, ...]
    judgements: tuple[Judgement, ...]
    scope: Scope

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose key vectors are needed."""
        return tuple(term.layer for term in self.terms)


class SpanBank(nn.Module):
    """v(x) per token at one layer. Its weights are a buffer, which a compiled model reads as an input."""

    weight_F: Tensor
    offset: Tensor

    def __init__(self, weight_F: Tensor, offset: Tensor, parts: int) -> None:
        super().__init__()
        self._parts = parts
        self.register_buffer("weight_F", weight_F, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, key_TF: Tensor, _: Tensor | None = None) -> Tensor:
        """v(x) of every token, float32 [T, parts], the same for all; not finite where the key vector is not.

        In float32 whatever the key's dtype. Of a slice of x and of the weights it is that slice's share.
        """
        value_T1 = (key_TF.float() * self.weight_F).sum(dim=-1, keepdim=True) - self.offset
        return value_T1.expand(-1, self._parts)


@dataclass(frozen=True)
class Windows:
    """Mean key vectors of one side's windows, by layer float32 [N, F], and what each counts, float64 [N]."""

    key_NF: Mapping[int, Tensor]
    weight_N: Tensor


@dataclass(frozen=True)
class _Layer:
    """A layer's residuals of both classes, scaled to unit within-class deviation and each class to half of the weight.

    `residual_NF` float32, `gap_F` the scaled difference of the means (retain less forget), `scale_F` the deviations.
    """

    residual_NF: Tensor
    gap_F: Tensor
    scale_F: Tensor
    forget_mean_F: Tensor
    floored: int


def _prepare(sides: Sequence[tuple[Tensor, Tensor]]) -> _Layer:
    means, residuals = [], []
    for key_NF, weight_N in sides:
        share_N1 = (weight_N / weight_N.sum())[:, None]
        means.append((share_N1 * key_NF.double()).sum(dim=0))
        residuals.append((key_NF.double() - means[-1]) * (share_N1 / 2).sqrt())
    residual_NF = torch.cat(residuals)
    scale_F, floored = floor_sigma(residual_NF.square().sum(dim=0).sqrt())
    return _Layer((residual_NF / scale_F).float(), (means[1] - means[0]) / scale_F, scale_F, means[0], floored)


def _products(layer: _Layer) -> tuple[Tensor, Tensor]:
    """Z Z' [N, N] and Z gap [N], float64, a chunk of dimensions at a time."""
    count = layer.residual_NF.shape[0]
    gram_NN, along_N = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for start in range(0, layer.residual_NF.shape[1], CHUNK):
        chunk_NF = layer.residual_NF[:, start : start + CHUNK].double()
        gram_NN += chunk_NF @ chunk_NF.T
        along_N += chunk_NF @ layer.gap_F[start : start + CHUNK]
    return gram_NN, along_N


class DiscriminantFitter:
    """Fits discriminants from the windows of both sides.

    With Z the scaled residuals and C = Z'Z, ``w = ((1 - s) C + s I)^-1 gap``, solved in the N dimensions of the
    vectors (Woodbury), since N is below d_ff in the models this is for. Raises CalibrationError below two vectors of a
    side, and on one that is not finite.
    """

    def __init__(self, forget: Windows, retain: Windows) -> None:
        for key_NF in (*forget.key_NF.values(), *retain.key_NF.values()):
            if len(key_NF) < MIN_VECTORS:
                raise CalibrationError(f"got {len(key_NF)} window(s) of a side, wanted at least {MIN_VECTORS}")
            if not bool(torch.isfinite(key_NF).all()):
                raise CalibrationError("a key vector is not finite: the model overflows on this data in this dtype")
        self._layers = {
            layer: _prepare([(side.key_NF[layer], side.weight_N) for side in (forget, retain)])
            for layer in forget.key_NF
        }
        self._products = {layer: _products(each) for layer, each in self._layers.items()}

    def floored(self, layers: Sequence[int]) -> int:
        """Dimensions whose deviation was raised to the floor."""
        return sum(self._layers[layer].floored for layer in layers)

    def finish(self, layers: Sequence[int]) -> tuple[LayerWeights, ...]:
        """The discriminant over some layers together. Raises CalibrationError where the sides have one mean."""
        gram_NN = torch.stack([self._products[layer][0] for layer in layers]).sum(dim=0)
        along_N = torch.stack([self._products[layer][1] for layer in layers]).sum(dim=0)
        ridge = SHRINKAGE / (1 - SHRINKAGE)
        factor_NN = torch.linalg.cholesky(gram_NN + ridge * torch.eye(len(gram_NN), dtype=torch.float64))
        solved_N = torch.cholesky_solve(along_N.unsqueeze(1), factor_NN).squeeze(1)
        weights = {}
        for layer in layers:
            each = self._layers[layer]
            weights[layer] = each.gap_F - (each.residual_NF.T @ solved_N.float()).double()
        gap = sum(float(weights[layer] @ self._layers[layer].gap_F) for layer in layers)
        if not gap > 0:
            raise CalibrationError("both sides have the same mean key vector: give examples that differ")
        terms = []
        for layer in sorted(layers):
            each = self._layers[layer]
            weight_F = weights[layer] / each.scale_F / gap
            terms.append(LayerWeights(layer, weight_F.float(), float(weight_F @ each.forget_mean_F)))
        return tuple(terms)
