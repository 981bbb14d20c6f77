"""The toy probe: a part of its own kind, at a site that no shipped method reads.

Suffixes: T tokens, C columns, K numbers of a state, L layers, D model width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guards.contract.accumulate import OverTokens
from guards.contract.turns import Turns
from guards.core.verdict import Scope


@dataclass(frozen=True)
class Least(OverTokens):
    """The smallest value of a sequence's tokens so far: the text is the skill's where any of its tokens is."""

    neutral = (torch.inf,)

    def lift(self, values_TC: Tensor, turns: Turns) -> Tensor:
        return values_TC.double().unsqueeze(-1)

    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        return torch.minimum(before_NCK, after_NCK)

    def read(self, values_TC: Tensor, state_TCK: Tensor) -> Tensor:
        return state_TCK[..., 0].float()


@dataclass(frozen=True)
class ProbeGuard:
    """`weight_LD` and `offset` give a token's score over all layers: 1 at the line, less on the skill's side."""

    layers: tuple[int, ...]
    weight_LD: Tensor
    offset: float
    scope: Scope = Scope.BOTH


class Direction(nn.Module):
    """One layer's share of a token's score."""

    weight_D: Tensor

    def __init__(self, weight_D: Tensor, offset: float) -> None:
        super().__init__()
        self.register_buffer("weight_D", weight_D, persistent=False)
        self._offset = offset

    def forward(self, x_TD: Tensor, _: Tensor) -> Tensor:
        return (x_TD.float() @ self.weight_D).unsqueeze(1) + self._offset
