"""The toy probe: a part of its own kind, at a site that no shipped method reads.

Suffixes: T tokens, C columns, K numbers of a state, L layers, D model width.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from guards.contract.accumulate import Max
from guards.contract.turns import Turns
from guards.core.verdict import Scope


@dataclass(frozen=True)
class Least(Max):
    """The smallest value of a sequence's tokens so far: the text is the skill's where any of its tokens is."""

    def lift(self, values_TC: Tensor, turns: Turns) -> Tensor:
        return super().lift(-values_TC, turns)

    def read(self, values_TC: Tensor, state_TCK: Tensor, positions_T: Tensor) -> Tensor:
        return -super().read(values_TC, state_TCK, positions_T)


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
