"""Projections by probes: ``h' = h - beta relu(w.h + b) w`` in the residual stream after a block.

Suffixes: T tokens, D the residual stream's width (d_model).

w is the unit direction of the layer's probe and b its offset, both in the stream's own coordinates, so that
``w.h + b`` is how far a token lies on the skill's side of the probe's boundary. At other tokens nothing changes, and
what is changed moves along w alone: ``w.h' + b`` is (1 - beta) times what it was. With beta 1 it is
``min(w.h + b, 0)``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guards.core.verdict import Scope


@dataclass(frozen=True)
class Boundary:
    """Where one layer's probe has both sides alike: ``w.h + b = 0``, above it is the skill. `w_D` float32, of length 1.

    `usual`: root mean square length of the residual stream there, at the last tokens of retain prompts. By it is told
    how far a token is moved, and nothing else.
    """

    layer: int
    w_D: Tensor
    b: float
    usual: float


@dataclass(frozen=True)
class ProjectionGuard:
    """An intervention on the residual stream. Layers ascend."""

    boundaries: tuple[Boundary, ...]
    beta: float
    scope: Scope = Scope.BOTH

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers behind which it acts."""
        return tuple(each.layer for each in self.boundaries)


class Projection(nn.Module):
    """What acts at one layer. Its tensors are buffers, which a compiled model reads as inputs: w, and [1] each b, beta
    and 1 over the usual length.
    """

    w_D: Tensor
    b: Tensor
    beta: Tensor
    share: Tensor

    def __init__(self, of: Boundary, beta: float, device: torch.device) -> None:
        super().__init__()
        numbers = {"b": of.b, "beta": beta, "share": 1 / of.usual}
        self.register_buffer("w_D", of.w_D.float().to(device), persistent=False)
        for name, number in numbers.items():
            self.register_buffer(name, torch.tensor([number], dtype=torch.float32, device=device), persistent=False)

    def forward(self, h_TD: Tensor, _: Tensor, on_T: Tensor) -> Tensor:
        """Changes h in place where `on_T` says so; returns how far that moved it, float32 [T, 1].

        In float32, and rounded once. 0 where it did nothing, and NaN where h as it is left, or how far it lies beyond,
        is not finite, acted on or not.
        """
        beyond_T1 = h_TD.float() @ self.w_D[:, None] + self.b
        step_T1 = torch.where(on_T[:, None], self.beta * beyond_T1.relu(), 0)
        moved_TD = (h_TD.float() - step_T1 * self.w_D).to(h_TD.dtype)
        h_TD.copy_(torch.where(step_T1 > 0, moved_TD, h_TD))
        finite_T1 = torch.isfinite(h_TD).all(dim=-1, keepdim=True) & torch.isfinite(beyond_T1)
        return torch.where(finite_T1, step_T1 * self.share, torch.nan)
