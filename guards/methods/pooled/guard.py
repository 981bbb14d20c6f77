"""Key Space Detection on the mean key vector: a whitened discriminant in the place of a cube.

Suffixes: T tokens, F feed-forward width (d_ff), N key vectors, L layers.

A cube asks of each of d_ff dimensions alone whether the last token's key vector lies within the skill. The mean key
vector of all tokens so far depends far less on the frame around the text, and one direction tells the skill from the
rest: Fisher's linear discriminant, with a within-class covariance shrunk towards its diagonal (Ledoit and Wolf 2004),
over the key vectors of one or several layers. The score of a sequence,

    s = sum_l mean_t v_l(x_tl),    v_l(x) = w_l . x - o_l,

is 0 at the forget set's mean and 1 at the retain set's; the guard fires where s <= tau. Since the mean of a linear
function is the function of the mean, serving keeps one running sum per sequence (`accumulate.py`) and no vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guards.calibration.statistics import MIN_VECTORS, floor_sigma
from guards.core.verdict import Scope
from guards.errors import CalibrationError

SHRINKAGE = 0.1
"""Share of the diagonal in the within-class covariance; .03 to .3 measured alike."""
CHUNK = 4096
"""Dimensions at a time in float64: bounds the memory of a fit."""


@dataclass(frozen=True)
class LayerWeights:
    """One layer's part of the score: `weight_F` float32, and the offset o_l."""

    layer: int
    weight_F: Tensor
    offset: float


@dataclass(frozen=True)
class PooledGuard:
    """A detector of one part: the mean key vectors of one or several layers, ascending, against tau."""

    terms: tuple[LayerWeights, ...]
    tau: float
    scope: Scope

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose key vectors are needed."""
        return tuple(term.layer for term in self.terms)


class PooledBank(nn.Module):
    """v(x) per token at one layer. Its weights are a buffer, which a compiled model reads as an input."""

    weight_F: Tensor
    offset: Tensor

    def __init__(self, weight_F: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight_F", weight_F, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, key_TF: Tensor, _: Tensor | None = None) -> Tensor:
        """v(x) of every token, float32 [T, 1]; not finite where the key vector is not.

        In float32 whatever the key's dtype. Of a slice of x and of the weights it is that slice's share.
        """
        return (key_TF.float() * self.weight_F).sum(dim=-1, keepdim=True) - self.offset


@dataclass(frozen=True)
class _Side:
    """A layer's residuals of both classes, scaled to unit within-class deviation and each class to half of the weight.

    `residual_NF` float32, `gap_F` the scaled difference of the means (retain less forget), `scale_F` the deviations.
    """

    residual_NF: Tensor
    gap_F: Tensor
    scale_F: Tensor
    forget_mean_F: Tensor
    floored: int


def _prepare(forget_NF: Tensor, retain_NF: Tensor) -> _Side:
    means = [side.double().mean(dim=0) for side in (forget_NF, retain_NF)]
    residuals = [
        (side.double() - mean_F) / (2 * len(side)) ** 0.5
        for side, mean_F in zip((forget_NF, retain_NF), means, strict=True)
    ]
    residual_NF = torch.cat(residuals)
    scale_F, floored = floor_sigma(residual_NF.square().sum(dim=0).sqrt())
    return _Side((residual_NF / scale_F).float(), (means[1] - means[0]) / scale_F, scale_F, means[0], floored)


def _products(side: _Side) -> tuple[Tensor, Tensor]:
    """Z Z' [N, N] and Z gap [N], float64, a chunk of dimensions at a time."""
    count = side.residual_NF.shape[0]
    gram_NN, along_N = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for start in range(0, side.residual_NF.shape[1], CHUNK):
        chunk_NF = side.residual_NF[:, start : start + CHUNK].double()
        gram_NN += chunk_NF @ chunk_NF.T
        along_N += chunk_NF @ side.gap_F[start : start + CHUNK]
    return gram_NN, along_N


class DiscriminantFitter:
    """Fits discriminants from the mean key vectors of both sides, by layer: float32 [N, F] each.

    With Z the scaled residuals and C = Z'Z, ``w = ((1 - s) C + s I)^-1 gap``, solved in the N dimensions of the
    vectors (Woodbury), since N is far below d_ff in the models this is for. Raises CalibrationError below two vectors
    of a side, and on one that is not finite.
    """

    def __init__(self, forget: Mapping[int, Tensor], retain: Mapping[int, Tensor]) -> None:
        for side in (*forget.values(), *retain.values()):
            if len(side) < MIN_VECTORS:
                raise CalibrationError(f"got {len(side)} mean key vector(s) of a side, wanted at least {MIN_VECTORS}")
            if not bool(torch.isfinite(side).all()):
                raise CalibrationError("a key vector is not finite: the model overflows on this data in this dtype")
        self._sides = {layer: _prepare(forget[layer], retain[layer]) for layer in forget}
        self._products = {layer: _products(side) for layer, side in self._sides.items()}

    def floored(self, layers: Sequence[int]) -> int:
        """Dimensions whose deviation was raised to the floor."""
        return sum(self._sides[layer].floored for layer in layers)

    def finish(self, layers: Sequence[int]) -> tuple[LayerWeights, ...]:
        """The discriminant over some layers together. Raises CalibrationError where the sides have one mean."""
        gram_NN = torch.stack([self._products[layer][0] for layer in layers]).sum(dim=0)
        along_N = torch.stack([self._products[layer][1] for layer in layers]).sum(dim=0)
        ridge = SHRINKAGE / (1 - SHRINKAGE)
        factor_NN = torch.linalg.cholesky(gram_NN + ridge * torch.eye(len(gram_NN), dtype=torch.float64))
        solved_N = torch.cholesky_solve(along_N.unsqueeze(1), factor_NN).squeeze(1)
        weights = {}
        for layer in layers:
            side = self._sides[layer]
            weights[layer] = side.gap_F - (side.residual_NF.T @ solved_N.float()).double()
        gap = sum(float(weights[layer] @ self._sides[layer].gap_F) for layer in layers)
        if not gap > 0:
            raise CalibrationError("both sides have the same mean key vector: give examples that differ")
        terms = []
        for layer in sorted(layers):
            side = self._sides[layer]
            weight_F = weights[layer] / side.scale_F / gap
            terms.append(LayerWeights(layer, weight_F.float(), float(weight_F @ side.forget_mean_F)))
        return tuple(terms)


def mean_scores(terms: Sequence[LayerWeights], means: Mapping[int, Tensor]) -> Tensor:
    """Scores of mean key vectors, by layer [N, F]; float32 [N]."""
    return torch.stack([means[term.layer].float() @ term.weight_F - term.offset for term in terms]).sum(dim=0)
