"""What the trainings of the RMU family minimise: two losses on the residual stream after chosen blocks.

Suffixes: T tokens, D residual width, E examples. h is with the deltas, h0 without.

| variant | forget | retain |
|---|---|---|
| `rmu` (WMDP, 2403.03218) | ``mean (h - c u)^2`` | ``mean (h - h0)^2`` |
| `adaptive` (2408.06223) | ``mean (h - beta |h0| u)^2``, \\|h0\\| each token's own | ``mean (h - h0)^2`` |
| `cosine` (2605.26454) | ``mean (1 - cos(h, u))`` | ``mean (1 - cos(h, h0))`` |
| `probe` (2605.26454, eq. 6) | ``mean_E sum_i (h_i . w_i)^2`` at last tokens | ``mean_i mean (h_i - h0_i)^2`` |

u is one random unit vector. Means of squares are over tokens and the D entries alike, as in WMDP's own code. That draws
u with entries above 0 alone; here no direction is likelier than another. Adaptive RMU's code takes one |h0|, the mean
of a topic's first batch; here a token's own is taken, so that no example decides for others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from guards.methods.rmu.drawing import seeded

States = Mapping[int, Tensor]
"""The residual stream by layer, [T, D]."""


class Objective(Protocol):
    """A pair of losses, both 0 at best, on the tokens that examples are looked at from (`dealt_examples`).

    `by_token`: a batch weighs by its tokens that are looked at, so that all tokens of a side weigh alike; else all
    batches weigh alike, as in the papers' code, and a token weighs more the fewer are beside it.
    """

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def by_token(self) -> bool: ...

    def forget(self, after: States, before: States) -> Tensor:
        """On states of forget text."""
        ...

    def retain(self, after: States, before: States) -> Tensor:
        """On states of retain text."""
        ...


def random_unit(width: int, seed: int) -> Tensor:
    """A direction that no other is likelier than, float32 [D]."""
    return functional.normalize(torch.randn(width, generator=seeded("unit", seed)), dim=0)


def away(after_TD: Tensor, before_TD: Tensor) -> Tensor:
    """``1 - cos`` of two states, the mean over tokens."""
    return 1 - functional.cosine_similarity(after_TD.float(), before_TD.float(), dim=-1).mean()


def squared(after_TD: Tensor, before_TD: Tensor) -> Tensor:
    """Squared difference, the mean over tokens and entries."""
    return functional.mse_loss(after_TD.float(), before_TD.float())


@dataclass(frozen=True)
class Misdirection:
    """RMU: forget states go to ``c u``."""

    layer: int
    unit_D: Tensor
    c: float
    by_token: bool = False

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def forget(self, after: States, _: States) -> Tensor:
        return squared(after[self.layer], (self.c * self.unit_D).expand_as(after[self.layer]))

    def retain(self, after: States, before: States) -> Tensor:
        return squared(after[self.layer], before[self.layer])


@dataclass(frozen=True)
class AdaptiveMisdirection:
    """Adaptive RMU: every forget state goes to ``beta |h0| u``, whatever the scale of the model and layer is."""

    layer: int
    unit_D: Tensor
    beta: float
    by_token: bool = False

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def forget(self, after: States, before: States) -> Tensor:
        c_T1 = self.beta * before[self.layer].float().norm(dim=-1, keepdim=True)
        return squared(after[self.layer], c_T1 * self.unit_D)

    def retain(self, after: States, before: States) -> Tensor:
        return squared(after[self.layer], before[self.layer])


@dataclass(frozen=True)
class CosineMisdirection:
    """Cosine RMU: forget states turn to u at whatever length, retain states keep their direction."""

    layer: int
    unit_D: Tensor
    by_token: bool = False

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def forget(self, after: States, _: States) -> Tensor:
        return away(after[self.layer], self.unit_D.expand_as(after[self.layer]))

    def retain(self, after: States, before: States) -> Tensor:
        return away(after[self.layer], before[self.layer])


@dataclass(frozen=True)
class ProbeSuppression:
    """Forget states at last tokens lose what a probe of each layer reads; `probes` are its weights, [D]."""

    probes: Mapping[int, Tensor]
    by_token: bool = False

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.probes))

    def forget(self, after: States, _: States) -> Tensor:
        readings_E = [(after[layer].float() @ probe_D).square() for layer, probe_D in self.probes.items()]
        return torch.stack(readings_E).sum(dim=0).mean()

    def retain(self, after: States, before: States) -> Tensor:
        return torch.stack([squared(after[layer], before[layer]) for layer in self.probes]).mean()
