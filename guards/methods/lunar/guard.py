"""LUNAR (arXiv 2502.07218): moves the skill's prompts to where the model says that it cannot answer.

Suffixes: T tokens, F feed-forward width (d_ff), D the residual stream's (d_model), G ridges.

The direction r at a block leads from the mean of forget prompts in the residual stream after it, at their last tokens,
to that of reference prompts. Tokens of forget texts are to have c r added to what the block's feed-forward network
gives, all others nothing. The change of the down projection that comes nearest to that, held to none by a ridge, is of
rank one: ``c r w'`` with ``w = (Hf'Hf + Hr'Hr + lambda I)^-1 Hf' 1``, H holding the key vectors of
both sides' tokens. So it needs no training: two sums over one pass, and one solve. What lies outside of the span of
those key vectors is left as it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guards.core.verdict import Scope
from guards.errors import CalibrationError
from guards.methods.delta import Factors


@dataclass(frozen=True)
class LunarGuard:
    """An intervention: the change of one layer, and how it came to be. `ridge` is None where it was trained."""

    deltas: Mapping[int, Factors]
    reference: str
    strength: float
    ridge: float | None
    scope: Scope = Scope.BOTH

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer."""
        return tuple(sorted(self.deltas))


class RidgeSums:
    """All that the solve needs of one layer's key vectors: two sums over a stream of tokens of both sides."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._products_FF = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._forget_F = torch.zeros(width, dtype=torch.float64, device=device)
        self._tokens = 0

    def update(self, k_TF: Tensor, *, forget: bool) -> None:
        """Adds tokens. Products are of float64: the solve's condition is the square of the key vectors'."""
        k_TF = k_TF.double()
        self._products_FF.addmm_(k_TF.T, k_TF)
        if forget:
            self._forget_F += k_TF.sum(dim=0)
        self._tokens += len(k_TF)

    def solve(self, ridges: Sequence[float]) -> Tensor:
        """w for each ridge, a share of the mean square of an entry times the tokens, float64 [G, F].

        Raises CalibrationError where a key vector was not finite, or all were zero.
        """
        mean = float(self._products_FF.diagonal().mean())
        if not 0 < mean < float("inf"):
            raise CalibrationError("key vectors are not finite in this dtype on this data, or all of them are zero")
        values_F, vectors_FF = torch.linalg.eigh(self._products_FF)
        along_F = vectors_FF.T @ self._forget_F
        values_F = values_F.clamp_min(0)
        return torch.stack([vectors_FF @ (along_F / (values_F + ridge * mean)) for ridge in ridges])


def redirection(direction_D: Tensor, w_F: Tensor, *, strength: float, usual: float) -> Factors:
    """``strength * r w'`` as factors, float32; A holds w alone, so that what it gives is how much of a token is the
    skill's: 1 as the forget texts', 0 as the others'.
    """
    return Factors(w_F[None].float().cpu(), strength * direction_D[:, None].float().cpu(), usual)
