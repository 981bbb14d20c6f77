"""Where tau lies: conformal on both sides, and scaled down where several cubes together fire too often.

Scores are float32, small inside the skill. Suffixes: E examples, C cubes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from guards.artifact.manifest import Rate
from guards.calibration.options import PlacementName
from guards.calibration.statistics import clopper_pearson, conformal_tau

TINY = 1e-30
MIN_RECALL = 0.5
"""Below this a guard does not take its skill away; none is written."""


def below(value: float) -> float:
    """The largest float32 below a value: servers compare `s <= tau` in float32."""
    single = torch.tensor(value, dtype=torch.float32)
    if float(single) < value:
        return float(single)
    return float(torch.nextafter(single, torch.tensor(-torch.inf)))


def false_abstention_bound(retain_E: Tensor, cap: float) -> float:
    """The largest tau whose expected false-abstention rate on a further exchangeable example is at most `cap`.

    Just below the floor((n + 1) * cap)-th smallest retain score: split conformal, seen from the other side. With fewer
    than 1 / cap - 1 examples no tau keeps that promise; then just below the smallest, so that none of those fires.
    """
    rank = max(1, math.floor((retain_E.numel() + 1) * cap + 1e-9))
    return below(float(retain_E.float().sort().values[rank - 1]))


def tolerated(examples: int, cap: float) -> int:
    """The most hits of so many examples that do not contradict a rate of `cap` (Clopper and Pearson, 95 %)."""
    hits = 0
    while hits < examples and clopper_pearson(hits + 1, examples)[0] <= cap:
        hits += 1
    return hits


def place_tau(needed: float, bound: float, placement: PlacementName) -> float:
    """A tau between the smallest that the recall needs and the largest that the cap allows; the cap wins.

    "tight" takes the smallest. "middle" takes the geometric mean of both. That leaves the same room on both sides for
    prompts that differ from the calibration's: it forgets new wordings better, and refuses more of kinds of text that
    no retain source holds.
    """
    if bound <= needed:
        return bound
    return needed if placement == "tight" else below(math.sqrt(needed * bound))


def enough_for_cap(examples: int, cap: float) -> bool:
    """Whether `false_abstention_bound` can keep its promise with that many retain examples."""
    return math.floor((examples + 1) * cap + 1e-9) >= 1


def too_few_for_cap(examples: int, cap: float, what: str) -> list[str]:
    """A warning where they are not `enough_for_cap`. `what`: of which kind these retain examples are."""
    if enough_for_cap(examples, cap):
        return []
    least = f"takes {math.ceil(1 / cap - 1 - 1e-9)}" if cap else "no number can"
    return [
        f"{examples} {what} for the threshold cannot show a false-abstention rate of {cap}, which {least}; give more "
        "retain examples"
    ]


def margin(forget_E: Tensor, bound: float, *, recall: float) -> float:
    """Log of `bound`, the largest tau allowed, over the smallest the recall needs; negative when both cannot be had."""
    return math.log(max(bound, TINY) / max(conformal_tau(forget_E, recall), TINY))


def joint_scale(retain_CE: Sequence[Tensor], taus: Sequence[float], cap: float) -> float:
    """The largest factor <= 1 on all taus with which the cubes together keep the cap on these examples.

    `retain_CE`: per served frame, the scores [C, E] of every cube on texts in that frame.
    """
    scale = 1.0
    tau_C1 = torch.tensor(taus, dtype=torch.float32).unsqueeze(1)
    for scores_CE in retain_CE:
        scale = min(scale, false_abstention_bound((scores_CE / tau_C1).amin(dim=0), cap))
    return scale


def hits(scores_CE: Tensor, taus: Sequence[float]) -> Tensor:
    """Examples on which any cube fires, bool [E]; float32 as the server compares."""
    tau_C1 = torch.tensor(taus, dtype=torch.float32).unsqueeze(1)
    return (scores_CE <= tau_C1).any(dim=0)


def rate_of(hits_E: Tensor) -> Rate:
    """The share of examples, bool [E]; 0 of none, whose interval is all there is."""
    return proportion(int(hits_E.sum()), hits_E.numel())


def proportion(count: int, total: int) -> Rate:
    """A proportion with its exact 95 % interval."""
    low, high = clopper_pearson(count, total)
    return Rate(hits=count, total=total, rate=count / total if total else 0.0, low=low, high=high)
