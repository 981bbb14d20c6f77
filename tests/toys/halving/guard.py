"""The toy halving: it says how much it took away, which is no count of neurons.

Suffixes: T tokens, F width of the site on this rank, S neurons.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guards.core.verdict import Scope


@dataclass(frozen=True)
class HalvingGuard:
    """Neurons of one layer's key vector, int64 [S]."""

    layer: int
    neurons_S: Tensor
    scope: Scope = Scope.BOTH

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)


class Halver(nn.Module):
    """Halves x's neurons in place; gives how much of their size is gone, float32 [T, 1]."""

    local_S: Tensor

    def __init__(self, local_S: Tensor) -> None:
        super().__init__()
        self.register_buffer("local_S", local_S, persistent=False)

    def forward(self, x_TF: Tensor, _: Tensor, on_T: Tensor) -> Tensor:
        x_TS = x_TF.index_select(-1, self.local_S)
        gone_TS = torch.where(on_T[:, None], x_TS / 2, 0)
        x_TF.index_copy_(-1, self.local_S, x_TS - gone_TS)
        return gone_TS.float().abs().sum(dim=-1, keepdim=True) + torch.zeros_like(x_TF[:, :1]).float()
