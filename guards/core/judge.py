"""Judging many positions of many guards at once, as tensors. What a reading means is said in `verdict.py` alone.

Suffixes: R positions, P parts of all guards, G guards.
"""

import torch
from torch import Tensor

from guards.core.verdict import GuardMode, Reading, Verdict, decide

NEVER = -torch.inf
"""The tau of an intervention's part, which is never inside."""


def read(score_RP: Tensor, tau_RP: Tensor, owner_PG: Tensor, missing_G: Tensor | None = None) -> Tensor:
    """`Reading` of every guard, int8 [R, G]: the one place where inside, outside, missing and invalid are told apart.

    `tau_RP` float32, broadcast over rows where it has one. `owner_PG` float32, 1 where a part is a guard's.
    `missing_G`: guards that were not heard of in this pass. A guard is INSIDE where any of its parts is at or below
    its tau, compared in float32; a score that is not finite, or a tau that is not a number, makes it INVALID whatever
    its other parts say.
    """
    broken_RP = ~torch.isfinite(score_RP) | torch.isnan(tau_RP)
    invalid_RG = broken_RP.float() @ owner_PG > 0
    inside_RG = (score_RP <= tau_RP).float() @ owner_PG > 0
    code_RG = torch.where(inside_RG, int(Reading.INSIDE), int(Reading.OUTSIDE))
    code_RG = torch.where(invalid_RG, int(Reading.INVALID), code_RG)
    if missing_G is not None:
        code_RG = torch.where(missing_G, int(Reading.MISSING), code_RG)
    return code_RG.to(torch.int8)


_PASSING = {
    enforced: [
        int(reading)
        for reading in Reading
        if decide(reading, GuardMode.ENFORCE, enforced) not in (Verdict.ABSTAIN, Verdict.ERROR)
    ]
    for enforced in (False, True)
}
"""Readings that let a token out, by whether a hit of the guard is enforced at the position."""


def withheld(code_RG: Tensor, enforced_RG: Tensor) -> Tensor:
    """`decide` for many positions at once: where a token must not go out, bool [R].

    `enforced_RG`: the guard is enforced and judges the position. In all other cases a hit lets the token out.
    """
    passes = {
        enforced: torch.stack([code_RG == code for code in codes]).any(dim=0) for enforced, codes in _PASSING.items()
    }
    return (~torch.where(enforced_RG, passes[True], passes[False])).any(dim=1)
