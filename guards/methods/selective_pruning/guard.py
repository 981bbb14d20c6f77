"""Selective Pruning (SP, "Dissecting Language Models", 2403.01267): sets the skill's neurons to zero for good.

Suffixes: T tokens, L layers, F neurons of a layer (feed-forward: d_ff, attention: d_attention), S pruned ones of it.

A neuron's output z is an entry of the key vector, or of the attention vector that goes into the output projection. Its
importance to a set of texts is one of four statistics over their tokens; neurons of the largest
``I(forget) / (I(retain) + eps)`` over all layers together are pruned. The model is measured again with them gone
before more are chosen, since what they did may move to others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from guards.calibration.selection import top_neurons
from guards.calibration.statistics import RunningMoments
from guards.core.verdict import Scope
from guards.errors import CalibrationError
from guards.model.sites import Place, Site

EPSILON: Mapping[Site, float] = {Site.KEY: 1e-3, Site.ATTENTION: 1e-4}
"""What keeps a neuron that retain texts never use from an infinite score (SP, section 3). Also the sites that are
pruned."""


class Importance(StrEnum):
    """``abs = mean|z|``, ``freq = P(z > 0)``, ``rms = sqrt(mean z^2)``, ``std = sqrt(mean (z - mean z)^2)``.

    SP's own code stores a variance under `std`; this is the deviation that the paper writes.
    """

    ABS = "abs"
    FREQ = "freq"
    RMS = "rms"
    STD = "std"


@dataclass(frozen=True)
class PruningGuard:
    """An intervention: the neurons that are zero, by layer, as ascending indices int64 [S]; layers without any are out.

    `d_attention` is the width that attention indices refer to. `fraction` and `attention_fraction` are shares of all
    neurons of their kind that each of `steps` steps pruned.
    """

    feed_forward: Mapping[int, Tensor]
    attention: Mapping[int, Tensor]
    d_attention: int
    fraction: float
    attention_fraction: float
    steps: int
    importance: Importance
    scope: Scope = Scope.BOTH

    def at(self, site: Site) -> Mapping[int, Tensor]:
        """The pruned neurons of one site."""
        return self.attention if site is Site.ATTENTION else self.feed_forward

    @property
    def places(self) -> tuple[Place, ...]:
        """Where neurons are pruned, ascending."""
        return tuple(sorted(Place(layer, site) for site in EPSILON for layer in self.at(site)))

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with at least one pruned neuron, ascending."""
        return tuple(sorted({place.layer for place in self.places}))


class Pruner(nn.Module):
    """The pruned neurons of one layer, or of one rank's slice of it, by their index there.

    They are a buffer, which a compiled model reads as an input instead of baking it in.
    """

    local_S: Tensor

    def __init__(self, local_S: Tensor) -> None:
        super().__init__()
        self.register_buffer("local_S", local_S, persistent=False)

    def forward(self, x_TF: Tensor, _: Tensor, on_T: Tensor) -> Tensor:
        """Changes x in place where `on_T` says so; returns neurons per token that were not zero before.

        Float32 [T, 1], NaN where a pruned neuron was not finite: its zero would hide that the model overflows.
        """
        x_TS = x_TF.index_select(-1, self.local_S)
        moved_TS = (x_TS != 0) & on_T[:, None]
        x_TF.index_copy_(-1, self.local_S, x_TS.masked_fill(on_T[:, None], 0))
        moved_T1 = moved_TS.sum(dim=-1, keepdim=True).float()
        return torch.where(torch.isfinite(x_TS).all(dim=-1, keepdim=True), moved_T1, torch.nan)


class ImportanceSums:
    """What the four importance functions need of one layer's neurons on one set, float64, over a stream of tokens."""

    def __init__(self, width: int) -> None:
        self._moments = RunningMoments(width)
        self._positive_F = torch.zeros(width, dtype=torch.float64)
        self._absolute_F = torch.zeros(width, dtype=torch.float64)

    @property
    def count(self) -> int:
        """Tokens seen."""
        return self._moments.count

    def update(self, z_TF: Tensor) -> None:
        """Adds tokens [T, F]; only vectors leave their device."""
        z_TF = z_TF.detach()
        self._moments.update(z_TF)
        self._positive_F += (z_TF > 0).sum(dim=0).cpu()
        self._absolute_F += z_TF.abs().sum(dim=0, dtype=torch.float64).cpu()

    def importance(self, kind: Importance) -> Tensor:
        """One statistic of every neuron, float64 [F]."""
        if kind is Importance.FREQ:
            return self._positive_F / self.count
        if kind is Importance.ABS:
            return self._absolute_F / self.count
        variance_F = self._moments.std().square() * ((self.count - 1) / self.count)  # of all tokens, not of a sample
        return (variance_F if kind is Importance.STD else variance_F + self._moments.mean.square()).sqrt()


class PruningFitter:
    """Streams the outputs of one site's neurons on all tokens of both sets; keeps four vectors per layer and set."""

    def __init__(self, site: Site, layers: int, width: int) -> None:
        self._site = site
        self._forget = [ImportanceSums(width) for _ in range(layers)]
        self._retain = [ImportanceSums(width) for _ in range(layers)]

    def update(self, layer: int, z_TF: Tensor, *, forget: bool) -> None:
        """Adds tokens of one layer. Raises CalibrationError on a non-finite value."""
        if not bool(torch.isfinite(z_TF).all()):
            raise CalibrationError(f"layer {layer}: a neuron's output is not finite in this dtype on this data")
        (self._forget if forget else self._retain)[layer].update(z_TF)

    def scores(self, importance: Importance) -> Tensor:
        """``I(forget) / (I(retain) + eps)`` of every neuron, float64 [L, F]."""
        epsilon = EPSILON[self._site]
        pairs = zip(self._forget, self._retain, strict=True)
        return torch.stack([f.importance(importance) / (r.importance(importance) + epsilon) for f, r in pairs])

    def finish(self, fraction: float, importance: Importance, pruned: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """`pruned`, and ``int(fraction * L * F)`` neurons more, by layer in ascending order.

        Raises CalibrationError when a side has no token, or when the fraction selects no neuron or more than are left.
        """
        if not min(self._forget[0].count, self._retain[0].count):
            raise CalibrationError("got no token on one side, wanted forget and retain text")
        scores_LF = self.scores(importance)
        for layer, neurons in pruned.items():
            scores_LF[layer, neurons] = -torch.inf
        more = top_neurons(scores_LF, fraction)
        none = torch.zeros(0, dtype=torch.int64)
        layers = sorted(pruned.keys() | more.keys())
        return {layer: torch.cat([pruned.get(layer, none), more.get(layer, none)]).sort().values for layer in layers}
