"""Probes: a logistic regression at every layer by itself, and which of them are taken together.

Suffixes: N windows, F width of a site, C layers that are looked at.

Each probe is scikit-learn's, L2-regularised over standardised dimensions; both sides count one half. The dimensions'
scales are folded into its weights, so that served it is one product. Probes are ranked by held-out log-AUROC within
the early, the middle and the late third of the model, since directions differ by depth, and the best of each third are
added: their logits sum up, as if layers were independent witnesses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from guards.calibration.corpus import SIDES
from guards.calibration.curves import HIGHEST, LOWEST, log_auroc
from guards.calibration.statistics import auroc, floor_sigma
from guards.errors import CalibrationError
from guards.methods.spans.guard import NO_GAP, RIDGE, LayerWeights, Windows, shares
from guards.methods.spans.held import Held
from guards.methods.spans.passes import WindowsOf
from guards.methods.spans.recipe import Direction

THIRDS = ("early", "middle", "late")
CANDIDATES = 12
"""Layers that are looked at where none is given, evenly spaced over the whole model."""
MOST = 3
"""Probes of a third that are taken at most."""
ITERATIONS = 500
"""Of scikit-learn's L-BFGS, at most."""


def dispersed_layers(count: int) -> tuple[int, ...]:
    """Of a model of `count` layers: CANDIDATES, evenly spaced from the first to the last."""
    wanted = min(CANDIDATES, count)
    return tuple(round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted))


def require_sklearn() -> Any:
    """The module of linear models. Raises CalibrationError where scikit-learn is missing."""
    try:
        from sklearn import linear_model
    except ImportError as error:
        raise CalibrationError("probes need scikit-learn: pip install 'skillguard[probes]'") from error
    return linear_model


@dataclass(frozen=True, eq=False)
class Probe:
    """One layer's: its value is 0 at the skill's mean and 1 at the others', which lie `gap` logits apart.

    `start`: the logit of being one of the others, at the skill's mean. `floored`: dimensions whose deviation was raised
    to the floor.
    """

    term: LayerWeights
    start: float
    gap: float
    floored: int


@dataclass(frozen=True)
class Measured:
    """A layer's probe on windows that it was not fitted on. `log_auroc` is None where these are too few."""

    layer: int
    third: str
    log_auroc: float | None
    auroc: float

    @property
    def quality(self) -> tuple[float, float]:
        """By which probes of a third are ranked."""
        return (self.log_auroc or 0.0, self.auroc)


def fit_probe(layer: int, sides: Sequence[tuple[Tensor, Tensor]]) -> Probe | None:
    """`sides`, the skill's first: vectors [N, F] and what each counts, one half a side. None where no direction tells
    them apart.
    """
    x_NF = torch.cat([each_NF for each_NF, _ in sides]).float().cpu()
    share_N = torch.cat([each_N for _, each_N in sides]).cpu()
    other_N = torch.repeat_interleave(torch.tensor([0, 1]), torch.tensor([len(each_N) for _, each_N in sides]))
    mean_F = (share_N[:, None] * x_NF).sum(dim=0)
    scale_F, floored = floor_sigma((share_N[:, None] * (x_NF - mean_F).square()).sum(dim=0).sqrt())
    model = require_sklearn().LogisticRegression(C=1 / (RIDGE * x_NF.shape[1]), max_iter=ITERATIONS)
    model.fit(((x_NF - mean_F) / scale_F).float().numpy(), other_N.numpy(), sample_weight=share_N.numpy())
    weight_F = torch.from_numpy(model.coef_[0]).double() / scale_F
    bias = float(model.intercept_[0]) - float(weight_F @ mean_F)
    logit_N = x_NF.double() @ weight_F + bias
    start, end = (float(2 * (share_N * logit_N)[other_N == side].sum()) for side in (0, 1))
    if not end - start > NO_GAP:
        return None
    term = LayerWeights(layer, (weight_F / (end - start)).float(), (start - bias) / (end - start))
    return Probe(term, start, end - start, floored)


@dataclass(frozen=True)
class RankedProbes:
    """Probes with what was measured of them, in the same order."""

    probes: Sequence[Probe]
    measured: Sequence[Measured]

    @property
    def candidates(self) -> list[Direction]:
        """The best of every third, one of each to MOST."""
        chosen = [self.best(most) for most in range(1, MOST + 1)]
        return [self._together(layers) for layers in dict.fromkeys(chosen)]

    def best(self, most: int) -> frozenset[int]:
        """The layers of the best probes of every third, so many of each."""
        ranked = [sorted((m for m in self.measured if m.third == third), key=lambda m: m.quality) for third in THIRDS]
        return frozenset(m.layer for own in ranked for m in own[-most:])

    def _together(self, layers: frozenset[int]) -> Direction:
        """Their logits' sum, scaled: of values, each layer's share is that of its gap."""
        share_C = torch.tensor([each.gap if each.term.layer in layers else 0.0 for each in self.probes])
        share_C /= share_C.sum()
        terms = [
            replace(each.term, weight_F=share * each.term.weight_F, offset=share * each.term.offset)
            for each, share in zip(self.probes, share_C.tolist(), strict=True)
            if each.term.layer in layers
        ]
        return Direction(tuple(terms), share_C)

    def note(self, layers: Sequence[int]) -> str:
        """What each of these layers' probes separates."""
        areas = {m.layer: "not measured" if m.log_auroc is None else f"{m.log_auroc:.3f}" for m in self.measured}
        floored = sum(each.floored for each in self.probes if each.term.layer in layers)
        return (
            f"a probe each, of held-out log-AUROC {', '.join(areas[layer] for layer in layers)}, deviation floored in "
            f"{floored} dimensions"
        )


@dataclass(frozen=True)
class Probes:
    """One at each layer that was looked at of a model of `count`. `windows` are what they are measured on."""

    probes: Sequence[Probe]
    count: int
    windows: WindowsOf

    @property
    def sets(self) -> list[tuple[LayerWeights, ...]]:
        """Each by itself."""
        return [(each.term,) for each in self.probes]

    def directions(self, held: Held) -> RankedProbes:
        """Ranked by what they separate among held-out windows."""
        forget_NC, retain_NC = (held.windows(self.windows, side) for side in SIDES)
        measured = [
            measure(each.term.layer, self.count, forget_N, retain_N)
            for each, forget_N, retain_N in zip(self.probes, forget_NC.T, retain_NC.T, strict=True)
        ]
        return RankedProbes(self.probes, measured)


def third(layer: int, count: int) -> str:
    """Of a model of `count` layers."""
    return THIRDS[layer * len(THIRDS) // count]


def measure(layer: int, count: int, forget_N: Tensor, retain_N: Tensor) -> Measured:
    """Of a probe's held-out values; log-AUROC from the lowest rate that so many others can show."""
    lowest = max(LOWEST, 1 / len(retain_N))
    area = log_auroc(forget_N, retain_N, lowest) if lowest < HIGHEST else None
    return Measured(layer, third(layer, count), area, auroc(forget_N, retain_N))


def fit_probes(forget: Windows, retain: Windows, layers: Sequence[int], *, count: int, windows: WindowsOf) -> Probes:
    """A probe at each layer of a model of `count`. Raises CalibrationError where none tells the sides apart."""
    weights = shares(forget, retain)
    found = [
        fit_probe(layer, [(side.take(layer), each) for side, each in zip((forget, retain), weights, strict=True)])
        for layer in layers
    ]
    probes = [each for each in found if each is not None]
    if not probes:
        raise CalibrationError(
            f"no direction tells the sides apart at layers {list(layers)}: give examples that differ, or more of them"
        )
    return Probes(probes, count, windows)
