"""Key Space Detection over spans: one direction in the key vectors of several layers, accumulated along the text.

Suffixes: T tokens, F feed-forward width (d_ff), N key vectors, L layers.

A cube asks of each of d_ff dimensions alone whether the last token's key vector lies within the skill. One direction
tells the skill from the rest far better: that of a logistic regression over the mean key vectors of short windows of
text (windows: Cunningham et al. 2026, arXiv 2601.04603). A token's value

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

RIDGE = 5e-5
"""Penalty on the square of the weights of standardised dimensions, a dimension; three times as much or a third measured
alike. Fisher's discriminant, shrunk by .3, left unlike texts a heavier tail, which decides a threshold.
"""
STEPS = 100
"""Of L-BFGS, at most."""

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
    """A layer's windows of both sides, forget first, around the middle of the means and scaled to unit within-class
    deviation: float32 [N, F]. `gap_F` is the scaled difference of the means (retain less forget), `scale_F` the
    deviations.
    """

    key_NF: Tensor
    gap_F: Tensor
    scale_F: Tensor
    forget_mean_F: Tensor
    floored: int


def _prepare(sides: Sequence[tuple[Tensor, Tensor]]) -> _Layer:
    """`sides`: key vectors and the share of each, which are one half together."""
    means = [(2 * share_N[:, None] * key_NF).sum(dim=0) for key_NF, share_N in sides]
    squares = [
        (share_N[:, None] * (key_NF - mean_F).square()).sum(dim=0)
        for (key_NF, share_N), mean_F in zip(sides, means, strict=True)
    ]
    scale_F, floored = floor_sigma(torch.stack(squares).sum(dim=0).sqrt())
    middle_F = (means[0] + means[1]) / 2
    key_NF = torch.cat([(key_NF - middle_F) / scale_F for key_NF, _ in sides])
    return _Layer(key_NF.float(), (means[1] - means[0]) / scale_F, scale_F, means[0], floored)


class DirectionFitter:
    """Fits directions from the windows of both sides, each of which counts one half.

    L2-regularised logistic regression of the side (Hastie, Tibshirani and Friedman 2009, 4.4), whose loss is that of
    the windows near the other side: what a threshold is decided by. Raises CalibrationError below two windows of a
    side, on one that is not finite, and where the sides have one mean.
    """

    def __init__(self, forget: Windows, retain: Windows) -> None:
        shares = []
        for side in (forget, retain):
            for key_NF in side.key_NF.values():
                if len(key_NF) < MIN_VECTORS:
                    raise CalibrationError(f"got {len(key_NF)} window(s) of a side, wanted at least {MIN_VECTORS}")
                if not bool(torch.isfinite(key_NF).all()):
                    raise CalibrationError("a key vector is not finite: the model overflows on this data in this dtype")
            shares.append(side.weight_N / side.weight_N.sum() / 2)
        self._share_N = torch.cat(shares).float()
        self._sign_N = torch.cat([torch.ones_like(shares[0]), -torch.ones_like(shares[1])]).float()
        self._layers = {
            layer: _prepare(
                [(side.key_NF[layer].double(), share) for side, share in zip((forget, retain), shares, strict=True)]
            )
            for layer in forget.key_NF
        }

    def floored(self, layers: Sequence[int]) -> int:
        """Dimensions whose deviation was raised to the floor."""
        return sum(self._layers[layer].floored for layer in layers)

    def finish(self, layers: Sequence[int]) -> tuple[LayerWeights, ...]:
        """The direction over some layers together."""
        chosen = {layer: self._layers[layer] for layer in sorted(layers)}
        if not any(bool(each.gap_F.any()) for each in chosen.values()):
            raise CalibrationError("both sides have the same mean key vector: give examples that differ")
        fitted = self._regress([each.key_NF for each in chosen.values()])
        gap = sum(float(weight_F @ each.gap_F) for weight_F, each in zip(fitted, chosen.values(), strict=True))
        terms = []
        for weight_F, (layer, each) in zip(fitted, chosen.items(), strict=True):
            own_F = weight_F / each.scale_F / gap
            terms.append(LayerWeights(layer, own_F.float(), float(own_F @ each.forget_mean_F)))
        return tuple(terms)

    def _regress(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Weights of each layer's features, float64."""
        widths = [each_NF.shape[1] for each_NF in features]
        weight_D = torch.zeros(sum(widths), requires_grad=True)
        bias = torch.zeros((), requires_grad=True)
        solver = torch.optim.LBFGS(
            [weight_D, bias], max_iter=STEPS, history_size=20, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
        )

        def loss() -> float:
            solver.zero_grad()
            parts = torch.split(weight_D, widths)
            logit_N = bias + torch.stack([x_NF @ part for x_NF, part in zip(features, parts, strict=True)]).sum(dim=0)
            found = (self._share_N * nn.functional.softplus(-self._sign_N * logit_N)).sum()
            found = found + RIDGE * len(weight_D) / 2 * weight_D.square().sum()
            found.backward()  # type: ignore[no-untyped-call]
            return found.item()

        with torch.enable_grad():
            solver.step(loss)  # type: ignore[no-untyped-call]
        return list(torch.split(weight_D.detach().double(), widths))
