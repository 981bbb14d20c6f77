"""Streaming moments, and intervals and thresholds that keep their promise on small samples."""

import math
from functools import cache

import torch
from scipy.stats import binomtest, mannwhitneyu
from torch import Tensor

MIN_VECTORS = 2
FEW_VECTORS = 200
SIGMA_FLOOR_REL = 1e-2
"""Share of the median sigma below which a dimension's sigma is raised: a dead dimension must not veto."""
SIGMA_FLOOR_ABS = 1e-6


class RunningMoments:
    """Mean and standard deviation per dimension, merged batch by batch in float64 (Chan et al. 1979).

    Memory grows with the dimensions, never with the number of vectors.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self._m2 = torch.zeros(width, dtype=torch.float64)

    def update(self, x_TF: Tensor) -> None:
        """Adds the rows of x [T, F]; only two vectors leave x's device."""
        n = x_TF.shape[0]
        if n == 0:
            return
        x_TF = x_TF.detach().double()
        mean = x_TF.mean(dim=0)
        m2 = (x_TF - mean).square().sum(dim=0).cpu()
        mean = mean.cpu()
        total = self.count + n
        delta = mean - self.mean
        self.mean = self.mean + delta * (n / total)
        self._m2 = self._m2 + m2 + delta.square() * (self.count * n / total)
        self.count = total

    def std(self) -> Tensor:
        """Sample standard deviation (ddof 1), float64; zero below two vectors."""
        return (self._m2 / max(self.count - 1, 1)).sqrt()


def floor_sigma(std_F: Tensor) -> tuple[Tensor, int]:
    """Raises tiny standard deviations; returns the floored vector and how many entries were raised."""
    floor = max(SIGMA_FLOOR_ABS, SIGMA_FLOOR_REL * float(std_F.median()))
    return std_F.clamp_min(floor), int((std_F < floor).sum())


@cache
def clopper_pearson(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a proportion; (0, 1) when nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    interval = binomtest(hits, total).proportion_ci(confidence_level=confidence, method="exact")
    return float(interval.low), float(interval.high)


def conformal_tau(scores: Tensor, recall: float) -> float:
    """Smallest threshold whose expected recall on a further exchangeable example is at least `recall`.

    The ceil((n + 1) * recall)-th smallest of n held-out scores (split conformal, Papadopoulos et al. 2002);
    the largest score when n is too small for that rank.
    """
    if scores.numel() == 0 or not 0 < recall <= 1:
        raise ValueError(f"conformal_tau: got {scores.numel()} scores and recall {recall}, wanted some and (0, 1]")
    n = scores.numel()
    rank = min(n, math.ceil((n + 1) * recall))
    return float(scores.float().sort().values[rank - 1])


def auroc(forget: Tensor, retain: Tensor) -> float:
    """Probability that a forget score is below a retain score, ties counted half (small score = skill)."""
    if forget.numel() == 0 or retain.numel() == 0:
        raise ValueError("auroc needs scores of both kinds")
    u = mannwhitneyu(retain.double().flatten().numpy(), forget.double().flatten().numpy()).statistic
    return float(u) / (forget.numel() * retain.numel())
