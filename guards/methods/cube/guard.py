"""Key Space Detection (ESU, section 3.2): a hypercube around the key vectors of one skill.

Suffixes: T tokens, F feed-forward width (d_ff), C cubes.

A key vector x is inside a cube when ``s(x) = max_j |x_j - mu_j| / sigma_j <= tau``. The paper's scale k, the smallest
cube that holds every calibration vector, is ``max_i s(x_i)`` in closed form; since the maxima over vectors and over
dimensions commute, it needs only each dimension's running minimum and maximum, so fitting never keeps vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from guards.calibration.statistics import FEW_VECTORS, MIN_VECTORS, RunningMoments, floor_sigma
from guards.core.verdict import Scope
from guards.errors import CalibrationError

TOGETHER = 1 << 20
"""Numbers of tokens, cubes and dimensions that are held at once, where nothing is compiled: they stay in cache."""


class Regime(StrEnum):
    """Which tokens of a forget example are fitted: its last one (mathematics, code) or all (languages)."""

    LAST_TOKEN = "last-token"
    ALL_TOKENS = "all-tokens"


@dataclass(frozen=True)
class Cube:
    """One fitted cube at one layer for one prompt frame.

    `mean_F` and `std_F` are float32; `std_F` is floored and so strictly positive. `tau` is the bound served,
    `k` the paper's bound on the fitted vectors.
    """

    layer: int
    frame: str
    mean_F: Tensor
    std_F: Tensor
    k: float
    tau: float


@dataclass(frozen=True)
class CubeGuard:
    """A detector of one or several cubes; a position is a hit when any cube holds its key vector."""

    cubes: tuple[Cube, ...]
    scope: Scope
    regime: Regime

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose key vectors are needed, ascending, each once."""
        return tuple(sorted({cube.layer for cube in self.cubes}))


def cube_score(key_TF: Tensor, mean_F: Tensor, inverse_std_F: Tensor) -> Tensor:
    """``s(x)`` per token, float32 [T]. A non-finite input gives a non-finite score, never a small one.

    Computed in float32 whatever the key's dtype; the authors cast mu and sigma to bfloat16 and lose tau's digits.
    """
    return (key_TF.float() - mean_F).mul_(inverse_std_F).abs_().amax(dim=-1)


class CubeBank(nn.Module):
    """The cubes of one layer, scored together.

    Keeps 1/sigma, so that a token costs one pass over its key vector for each cube. Its tensors are buffers, which a
    compiled model reads as inputs instead of baking them in.
    """

    mean_CF: Tensor
    inverse_std_CF: Tensor

    def __init__(self, mean_CF: Tensor, inverse_std_CF: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_CF", mean_CF, persistent=False)
        self.register_buffer("inverse_std_CF", inverse_std_CF, persistent=False)

    @classmethod
    def fuse(cls, banks: Sequence["CubeBank"]) -> "CubeBank":
        """All cubes of a layer at once; see `guards.contract.guard.fuse`."""
        fused = cls(torch.cat([bank.mean_CF for bank in banks]), torch.cat([bank.inverse_std_CF for bank in banks]))
        sizes = [len(bank.mean_CF) for bank in banks]
        pairs = zip(torch.split(fused.mean_CF, sizes), torch.split(fused.inverse_std_CF, sizes), strict=True)
        for bank, (mean_CF, inverse_std_CF) in zip(banks, pairs, strict=True):
            bank.mean_CF, bank.inverse_std_CF = mean_CF, inverse_std_CF
        return fused

    def forward(self, key_TF: Tensor, _: Tensor | None = None) -> Tensor:
        """s(x) of every token and cube, float32 [T, C]."""
        if torch.compiler.is_compiling():  # one loop over a key vector for each cube, in one pass over the tokens
            pairs = zip(self.mean_CF, self.inverse_std_CF, strict=True)
            return torch.stack([cube_score(key_TF, mean_F, inverse_F) for mean_F, inverse_F in pairs], dim=-1)
        blocks = torch.split(key_TF[:, None], max(1, TOGETHER // self.mean_CF.numel()))
        return torch.cat([cube_score(block_T1F, self.mean_CF, self.inverse_std_CF) for block_T1F in blocks])


class CubeFitter:
    """Streams key vectors [T, F] of the forget set at one layer; keeps moments and extremes, no vectors."""

    def __init__(self, width: int) -> None:
        self._moments = RunningMoments(width)
        self._low_F = torch.full((width,), torch.inf, dtype=torch.float32)
        self._high_F = torch.full((width,), -torch.inf, dtype=torch.float32)

    @property
    def count(self) -> int:
        """Vectors seen."""
        return self._moments.count

    @property
    def floored(self) -> int:
        """Dimensions whose standard deviation `finish` raises to the floor."""
        return floor_sigma(self._moments.std().float())[1]

    def update(self, key_TF: Tensor) -> None:
        """Adds vectors. Raises CalibrationError on a non-finite one."""
        if key_TF.shape[0] == 0:
            return
        if not bool(torch.isfinite(key_TF).all()):
            raise CalibrationError("a key vector is not finite: the model overflows on this data in this dtype")
        key_TF = key_TF.detach().float()
        self._moments.update(key_TF)
        self._low_F = torch.minimum(self._low_F, key_TF.amin(dim=0).cpu())
        self._high_F = torch.maximum(self._high_F, key_TF.amax(dim=0).cpu())

    def finish(self, layer: int, frame: str) -> Cube:
        """The cube with ``tau = k`` (the paper's alpha = 1). Raises CalibrationError below two vectors."""
        if self.count < MIN_VECTORS:
            raise CalibrationError(
                f"got {self.count} key vector(s), wanted at least {MIN_VECTORS} (better {FEW_VECTORS}): "
                "give more forget examples"
            )
        mean_F = self._moments.mean.float()
        std_F, _ = floor_sigma(self._moments.std().float())
        reach_F = torch.maximum(self._high_F - mean_F, mean_F - self._low_F)
        k = float((reach_F * std_F.reciprocal()).max())  # as cube_score rounds, so that the widest vector is inside
        if k <= 0:
            raise CalibrationError(f"all {self.count} key vectors are the same: give differing forget examples")
        return Cube(layer, frame, mean_F, std_F, k=k, tau=k)
