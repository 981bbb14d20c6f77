"""Strategies that the package does not ship: they show what the interface can carry."""

from dataclasses import dataclass

import torch
from torch import Tensor

from guards.contract.accumulate import OverTokens
from guards.contract.turns import Turns
from tests.toys.probe.guard import Least


@dataclass(frozen=True)
class Cusum(OverTokens):
    """The largest rise so far of the sum of values less `kappa`: max over v <= u of S_u - S_v, where S_0 = 0.

    The state is the sum, the least and the largest sum on the way, and the largest rise.
    """

    kappa: float

    neutral = (0.0, 0.0, 0.0, 0.0)

    def lift(self, values_TC: Tensor, turns: Turns) -> Tensor:
        step_TC = values_TC.double() - self.kappa
        up_TC = step_TC.clamp_min(0)
        return torch.stack([step_TC, step_TC.clamp_max(0), up_TC, up_TC], dim=-1)

    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        sum_NC, least_NC, most_NC, rise_NC = before_NCK.unbind(-1)
        more_NC, low_NC, high_NC, later_NC = after_NCK.unbind(-1)
        across_NC = sum_NC + high_NC - least_NC
        joined = (
            sum_NC + more_NC,
            torch.minimum(least_NC, sum_NC + low_NC),
            torch.maximum(most_NC, sum_NC + high_NC),
            torch.maximum(torch.maximum(rise_NC, later_NC), across_NC),
        )
        return torch.stack(joined, dim=-1)

    def read(self, values_TC: Tensor, state_TCK: Tensor) -> Tensor:
        return state_TCK[..., 3].float()


@dataclass(frozen=True)
class Mean(OverTokens):
    """The mean of the values. The state is their sum and how many they are."""

    neutral = (0.0, 0.0)

    def lift(self, values_TC: Tensor, turns: Turns) -> Tensor:
        return torch.stack([values_TC.double(), torch.ones_like(values_TC, dtype=torch.float64)], dim=-1)

    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        return before_NCK + after_NCK

    def read(self, values_TC: Tensor, state_TCK: Tensor) -> Tensor:
        return (state_TCK[..., 0] / state_TCK[..., 1]).float()


MEAN, LEAST = Mean(), Least()
