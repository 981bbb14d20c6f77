"""Key Space Detection over spans: one direction in the key vectors of several layers, accumulated along the text.

Suffixes: T tokens, F feed-forward width (d_ff), N key vectors, L layers.

A cube asks of each of d_ff dimensions alone whether the last token's key vector lies within the skill. One direction
tells the skill from the rest far better: that of a logistic regression over the mean key vectors of short windows of
text, which counts most the windows of each text that look most like the skill (both: Cunningham et al. 2026, arXiv
2601.04603). A token's value

    v(x) = sum_l w_l . x_l - o_l

is 0 at the weighted mean of the skill's windows and 1 at the others'. A text holds the skill where some stretch of it
has more evidence, 1 - v, than other text gathers (`guards.contract.spans.Rise`), which text beside it does not dilute.
Short texts gather too little, so the mean of a message is judged as well (`MessageMean`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from guards.calibration.statistics import MIN_VECTORS, floor_sigma
from guards.contract.accumulate import Token
from guards.contract.spans import MessageMean, Rise
from guards.core.verdict import Scope
from guards.errors import AttachError, CalibrationError
from guards.model.sites import Site

RIDGE = 5e-5
"""Penalty on the square of the weights of standardised dimensions, a dimension; three times as much or a third measured
alike. Fisher's discriminant, shrunk by .3, left unlike texts a heavier tail, which decides a threshold.
"""
STEPS = 100
"""Of L-BFGS, at most."""
ROUNDS = 2
"""Of weighing the windows of a text by the direction so far, and fitting again."""
TEMPERATURE = 0.25
"""Of the softmax over the evidence of a text's windows, in units of the gap between the sides."""
NO_GAP = 1e-6
"""In units of the regression's logit: less is rounding."""
EVEN = 0.3
"""Share of a text's weight that its windows have alike, whatever they look like."""
CHUNK_BYTES = 512 << 20
"""Of both sides' windows in float64, which a fit is prepared in: so many dimensions at a time."""
NOT_FINITE = "an activation is not finite: the model overflows on this data in this dtype"

StrategyName = Literal["span", "mean", "last"]
Strategy = Rise | MessageMean | Token


def strategy_name(strategy: Strategy) -> StrategyName:
    """What artifacts and reports call it."""
    if isinstance(strategy, Token):
        return "last"
    return "span" if isinstance(strategy, Rise) else "mean"


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
        name = strategy_name(self.over_tokens)
        if isinstance(self.over_tokens, Token):
            return f"{name} token"
        return f"{'answer' if self.over_tokens.written else 'prompt'}, {name}"


@dataclass(frozen=True)
class SpanGuard:
    """A detector of one part for each judgement. Layers ascend. `site` is what its weights are for, at each of them."""

    terms: tuple[LayerWeights, ...]
    judgements: tuple[Judgement, ...]
    scope: Scope
    site: Site = Site.KEY

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that are read."""
        return tuple(term.layer for term in self.terms)


def require_exact_products(device: torch.device) -> None:
    """Raises AttachError where matrix products in float32 are made of shorter numbers (TF32), as canaries were not."""
    precision = torch.get_float32_matmul_precision()
    if device.type == "cuda" and precision != "highest":
        raise AttachError(
            f"got float32_matmul_precision {precision!r}, wanted 'highest', which guards over spans were calibrated "
            "with: leave torch.set_float32_matmul_precision out"
        )


class SpanBank(nn.Module):
    """v(x) per token at one layer, of one guard or several. Its tensors are buffers, which a compiled model reads as
    inputs.

    Suffix: G guards.
    """

    weight_GF: Tensor
    offset_G: Tensor
    guard_C: Tensor

    def __init__(self, weight_GF: Tensor, offset_G: Tensor, parts: Sequence[int]) -> None:
        """`parts`: how many columns each guard has. Raises AttachError where products on the device are not exact."""
        super().__init__()
        require_exact_products(weight_GF.device)
        self._parts = tuple(parts)
        guard_C = torch.repeat_interleave(torch.arange(len(self._parts)), torch.tensor(self._parts))
        self.register_buffer("weight_GF", weight_GF, persistent=False)
        self.register_buffer("offset_G", offset_G, persistent=False)
        self.register_buffer("guard_C", guard_C.to(weight_GF.device), persistent=False)

    @classmethod
    def fuse(cls, banks: Sequence["SpanBank"]) -> "SpanBank":
        """One matrix product for all; see `guards.contract.guard.fuse`."""
        fused = cls(
            torch.cat([bank.weight_GF for bank in banks]),
            torch.cat([bank.offset_G for bank in banks]),
            [count for bank in banks for count in bank._parts],
        )
        sizes = [len(bank._parts) for bank in banks]
        pairs = zip(torch.split(fused.weight_GF, sizes), torch.split(fused.offset_G, sizes), strict=True)
        for bank, (weight_GF, offset_G) in zip(banks, pairs, strict=True):
            bank.weight_GF, bank.offset_G = weight_GF, offset_G
        return fused

    def forward(self, key_TF: Tensor, _: Tensor | None = None) -> Tensor:
        """v(x) of every token, float32 [T, columns], a guard's the same for all of its parts; not finite where the key
        vector is not.

        In float32 whatever the key's dtype. Of a slice of x and of the weights it is that slice's share.
        """
        value_TG = nn.functional.linear(key_TF.float(), self.weight_GF) - self.offset_G
        return value_TG.expand(-1, *self._parts) if len(self._parts) == 1 else value_TG.index_select(1, self.guard_C)


@dataclass(frozen=True)
class Windows:
    """Mean key vectors of one side's windows, by layer float32 [N, F] on any one device, what each counts, float64 [N],
    and the text that each is of, counted from 0, int64 [N].
    """

    key_NF: dict[int, Tensor]
    weight_N: Tensor
    text_N: Tensor

    def take(self, layer: int) -> Tensor:
        """A layer's vectors, which are kept no longer: all layers together are some GB of a large model."""
        return self.key_NF.pop(layer)


@dataclass(frozen=True)
class _Layer:
    """A layer's windows of both sides, forget first, around the middle of the means and scaled to unit within-class
    deviation, float32 [N, F]; middle and deviations float64 [F].
    """

    key_NF: Tensor
    middle_F: Tensor
    scale_F: Tensor
    floored: int


@dataclass(frozen=True)
class _Fit:
    """Weights of each layer's scaled windows, float32 [F], which point from the skill to the rest; what they make of
    the skill's mean, by layer; and how far the rest's mean lies beyond it, all layers together.
    """

    weights: tuple[Tensor, ...]
    starts: tuple[float, ...]
    gap: float


def _moments(sides: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The middle of the sides' means and the deviation within them, float64 [F], of vectors in float64."""
    means = [(2 * share_N[:, None] * key_NF).sum(dim=0) for key_NF, share_N in sides]
    squares = [
        (share_N[:, None] * (key_NF - mean_F).square()).sum(dim=0)
        for (key_NF, share_N), mean_F in zip(sides, means, strict=True)
    ]
    return (means[0] + means[1]) / 2, torch.stack(squares).sum(dim=0).sqrt()


def _prepare(sides: Sequence[tuple[Tensor, Tensor]]) -> _Layer:
    """`sides`: key vectors and the share of each, which are one half together.

    In float64, so many dimensions at a time: a dimension's moments are its own.
    """
    count, width = sum(len(key_NF) for key_NF, _ in sides), sides[0][0].shape[1]
    step = max(1, CHUNK_BYTES // (count * torch.float64.itemsize))
    chunks = [slice(start, start + step) for start in range(0, width, step)]
    found = [_moments([(key_NF[:, chunk].double(), share_N) for key_NF, share_N in sides]) for chunk in chunks]
    middle_F = torch.cat([middle for middle, _ in found])
    scale_F, floored = floor_sigma(torch.cat([deviation for _, deviation in found]))
    scaled_NF = sides[0][0].new_empty(count, width)
    for chunk in chunks:
        for (key_NF, _), into_NF in zip(
            sides, torch.split(scaled_NF, [len(key_NF) for key_NF, _ in sides]), strict=True
        ):
            into_NF[:, chunk] = (key_NF[:, chunk].double() - middle_F[chunk]) / scale_F[chunk]
    return _Layer(scaled_NF, middle_F, scale_F, floored)


def softened(evidence_N: Tensor, text_N: Tensor) -> Tensor:
    """What each window counts among those of its text, 1 on average: more, the more evidence it has. float64 [N].

    A text holds the skill if one of its windows does, and does not if none does.
    """
    count = int(text_N.max()) + 1
    scaled_N = evidence_N.double() / TEMPERATURE
    most_E = scaled_N.new_full((count,), -torch.inf).scatter_reduce(0, text_N, scaled_N, "amax")
    part_N = (scaled_N - most_E[text_N]).exp()
    sum_E = part_N.new_zeros(count).index_add_(0, text_N, part_N)
    windows_E = torch.bincount(text_N, minlength=count)
    return EVEN + (1 - EVEN) * part_N / sum_E[text_N] * windows_E[text_N]


def shares(forget: Windows, retain: Windows) -> tuple[Tensor, Tensor]:
    """What each window counts, float64 [N] by side on their device: one half a side.

    Raises CalibrationError below two windows of a side, and on one that is not finite.
    """
    found = []
    for side in (forget, retain):
        for key_NF in side.key_NF.values():
            if len(key_NF) < MIN_VECTORS:
                raise CalibrationError(f"got {len(key_NF)} window(s) of a side, wanted at least {MIN_VECTORS}")
            if not bool(torch.isfinite(key_NF).all()):
                raise CalibrationError(NOT_FINITE)
        device = next(iter(side.key_NF.values())).device
        found.append((side.weight_N / side.weight_N.sum() / 2).to(device))
    return found[0], found[1]


class DirectionFitter:
    """Fits directions from the windows of both sides, each of which counts one half.

    L2-regularised logistic regression of the side (Hastie, Tibshirani and Friedman 2009, 4.4), whose loss is that of
    the windows near the other side: what a threshold is decided by. Windows are weighed within their text by the
    direction itself, in rounds: a near miss differs from the skill in one window of several. Vectors are taken out of
    the windows given, and kept scaled. Raises CalibrationError below two windows of a side, on one that is not finite,
    and where no direction tells the sides apart.
    """

    def __init__(self, forget: Windows, retain: Windows) -> None:
        of_sides = shares(forget, retain)
        self._forgotten = len(of_sides[0])
        self._share_N = torch.cat(of_sides)
        self._text_N = torch.cat([forget.text_N, retain.text_N + int(forget.text_N.max()) + 1]).to(of_sides[0].device)
        self._layers = {
            layer: _prepare(
                [(side.take(layer), share_N) for side, share_N in zip((forget, retain), of_sides, strict=True)]
            )
            for layer in list(forget.key_NF)
        }

    @property
    def floored(self) -> dict[int, int]:
        """Dimensions whose deviation was raised to the floor, by layer."""
        return {layer: each.floored for layer, each in self._layers.items()}

    def finish(self, layers: Sequence[int]) -> tuple[LayerWeights, ...]:
        """The direction over some layers together."""
        chosen = {layer: self._layers[layer] for layer in sorted(layers)}
        features = [each.key_NF for each in chosen.values()]
        fit = self._fit(features, self._share_N)
        for _ in range(ROUNDS):
            value_N = (torch.stack(_along(features, fit.weights)).sum(dim=0) - sum(fit.starts)) / fit.gap
            fit = self._fit(features, self._share_N * softened(1 - value_N, self._text_N))
        terms = []
        for weight_F, start, (layer, each) in zip(fit.weights, fit.starts, chosen.items(), strict=True):
            own_F = weight_F.double() / each.scale_F / fit.gap
            terms.append(LayerWeights(layer, own_F.float().cpu(), float(own_F @ each.middle_F) + start / fit.gap))
        return tuple(terms)

    def _fit(self, features: Sequence[Tensor], share_N: Tensor) -> _Fit:
        weights = self._regress(features, share_N.float())
        forget, retain = slice(self._forgotten), slice(self._forgotten, None)
        along = [along_N.double() for along_N in _along(features, weights)]
        starts, ends = (
            tuple(float(share_N[side] @ along_N[side] / share_N[side].sum()) for along_N in along)
            for side in (forget, retain)
        )
        gap = sum(ends) - sum(starts)
        if not gap > NO_GAP:
            raise CalibrationError(
                f"no direction tells the sides apart (the means along the best lie {gap} apart): give examples that "
                "differ, or more of them"
            )
        return _Fit(weights, starts, gap)

    def _regress(self, features: Sequence[Tensor], share_N: Tensor) -> tuple[Tensor, ...]:
        widths = [each_NF.shape[1] for each_NF in features]
        sign_N = torch.ones_like(share_N)
        sign_N[: self._forgotten] = -1
        weight_D = share_N.new_zeros(sum(widths), requires_grad=True)
        bias = share_N.new_zeros((), requires_grad=True)
        solver = torch.optim.LBFGS(
            [weight_D, bias], max_iter=STEPS, history_size=20, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
        )

        def loss() -> float:
            solver.zero_grad()
            logit_N = bias + torch.stack(_along(features, torch.split(weight_D, widths))).sum(dim=0)
            found = (share_N * nn.functional.softplus(-sign_N * logit_N)).sum()
            found = found + RIDGE * len(weight_D) / 2 * weight_D.square().sum()
            found.backward()  # type: ignore[no-untyped-call]
            return found.item()

        with torch.enable_grad():
            solver.step(loss)  # type: ignore[no-untyped-call]
        return torch.split(weight_D.detach(), widths)


def _along(features: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Each layer's windows along its weights, float32 [N]."""
    return [x_NF @ weight_F for x_NF, weight_F in zip(features, weights, strict=True)]
