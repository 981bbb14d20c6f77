"""A training term for key vectors that tell skills apart.

Models of the size that Key Space Detection was published for separate skills unaided. This one knows the skill by its
second or third layer and, as nothing rewards it, does not carry the difference into the last layer's keys: trained
without this term, a cube around arithmetic lets half of the factual questions in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPSILON = 1e-6


def within_share(key_NF: Tensor, skill_N: Tensor) -> Tensor:
    """The share of a neuron's variance that lies within skills rather than between them, averaged over neurons.

    Differentiable, between 0 (keys depend on the skill alone) and 1 (keys say nothing of the skill).
    """
    member_NS = nn.functional.one_hot(skill_N).to(key_NF.dtype)
    mean_SF = member_NS.T @ key_NF / member_NS.sum(0).clamp_min(1)[:, None]
    within_F = (key_NF - mean_SF[skill_N]).square().mean(0)
    total_F = key_NF.var(0, correction=0)
    return torch.mean(within_F / (total_F + _EPSILON))
