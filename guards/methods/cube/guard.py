"""Key Space Detection (ESU, section 3.2): a hypercube around the key vectors of one skill.

Suffixes: T tokens, F feed-forward width (d_ff), C cubes.

A key vector x is inside a cube when ``s(x) = max_j |x_j - mu_j| / sigma_j <= tau``. The paper's scale k, the smallest
cube that holds every calibration vector, is ``max_i s(x_i)`` in closed form; since the maxima over vectors and over
dimensions commute, it needs only each dimension's running minimum and maximum, so fitting never keeps vectors.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from guards.calibration.statistics import RunningMoments
from guards.core.verdict import Scope
from guards.errors import CalibrationError

METHOD = "ksd"
MIN_VECTORS = 2
SIGMA_FLOOR_REL = 1e-2
"""Share of the median sigma below which a dimension's sigma is raised: a dead dimension must not veto."""
SIGMA_FLOOR_ABS = 1e-6


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
class KSDGuard:
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
    return ((key_TF.float() - mean_F) * inverse_std_F).abs().amax(dim=-1)


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

    @property
    def parts(self) -> int:
        """Columns of a token's scores: one per cube."""
        return len(self.mean_CF)

    def forward(self, key_TF: Tensor) -> Tensor:
        """s(x) of every token and cube, float32 [T, C]."""
        pairs = zip(self.mean_CF, self.inverse_std_CF, strict=True)
        return torch.stack([cube_score(key_TF, mean_F, inverse_F) for mean_F, inverse_F in pairs], dim=-1)


def floor_sigma(std_F: Tensor) -> tuple[Tensor, int]:
    """Raises tiny standard deviations; returns the floored vector and how many entries were raised."""
    floor = max(SIGMA_FLOOR_ABS, SIGMA_FLOOR_REL * float(std_F.median()))
    return std_F.clamp_min(floor), int((std_F < floor).sum())


class KSDFitter:
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
                f"got {self.count} key vector(s), wanted at least {MIN_VECTORS}: give more forget examples"
            )
        mean_F = self._moments.mean.float()
        std_F, _ = floor_sigma(self._moments.std().float())
        reach_F = torch.maximum(self._high_F - mean_F, mean_F - self._low_F)
        k = float((reach_F * std_F.reciprocal()).max())  # as cube_score rounds, so that the widest vector is inside
        if k <= 0:
            raise CalibrationError(f"all {self.count} key vectors are the same: give differing forget examples")
        return Cube(layer, frame, mean_F, std_F, k=k, tau=k)
