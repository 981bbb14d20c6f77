"""How a detector separates where false abstentions are rare, whatever its tau. Suffixes: E examples.

A small ratio speaks for the skill. The threshold for a share f of false abstentions is the largest at which at most f
of the retained prompts fire, so what is caught is never overstated.
"""

import math

import torch
from torch import Tensor

RATES = (0.001, 0.005, 0.01)
"""False abstention at which recall is reported."""
LOWEST, HIGHEST = 1e-3, 1e-1
"""False-positive rates between which the area is taken."""


def enough(retained: int, rate: float) -> bool:
    """Whether so many prompts can show the rate: one of them may fire."""
    return math.floor(retained * rate + 1e-9) >= 1


def _caught(forget_E: Tensor, retain_E: Tensor, firing: int) -> float:
    """Recall where at most `firing` retained prompts fire."""
    if firing >= len(retain_E):
        return 1.0
    return float((forget_E < retain_E.sort().values[firing]).float().mean())


def recall_at(forget_E: Tensor, retain_E: Tensor, rate: float) -> float | None:
    """Recall with at most that share of false abstentions; None where the retained prompts are too few to show it."""
    if not enough(len(retain_E), rate):
        return None
    return _caught(forget_E, retain_E, math.floor(len(retain_E) * rate + 1e-9))


def log_auroc(forget_E: Tensor, retain_E: Tensor, lowest: float = LOWEST) -> float | None:
    """Area under recall over log10 of the false-positive rate from `lowest` to HIGHEST, 1 for a perfect detector.

    Each factor of ten of the rate weighs the same. None where the retained scores are too few to show `lowest`.
    """
    count = len(retain_E)
    if not enough(count, lowest):
        return None
    first, last = (math.floor(count * rate + 1e-9) for rate in (lowest, HIGHEST))
    steps = torch.arange(first, last + 1, dtype=torch.float64) / count
    edges = torch.cat([steps, torch.tensor([HIGHEST], dtype=torch.float64)]).clamp(lowest, HIGHEST).log10()
    bound_E = retain_E.sort().values[first : last + 1].contiguous()
    below = torch.searchsorted(forget_E.sort().values.contiguous(), bound_E).double() / len(forget_E)
    return float((below * edges.diff()).sum() / math.log10(HIGHEST / lowest))
