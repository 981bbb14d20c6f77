"""How values accumulate, and how much evidence is needed: chosen on the threshold part alone.

Suffixes: E examples, T tokens of an example, S strategies over tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from guards.calibration.accumulated import read_texts
from guards.calibration.options import PlacementName
from guards.calibration.statistics import conformal_tau
from guards.calibration.thresholds import below, false_abstention_bound, tolerated
from guards.contract.spans import MessageMean, Rise
from guards.contract.turns import Turns
from guards.methods.spans.examples import Example
from guards.methods.spans.guard import Judgement, LayerWeights
from guards.methods.spans.options import SpanOptions

KAPPAS = (0.3, 0.4, 0.5, 0.6, 0.7)
WEIGHTS = (1.0, 3.0, 6.0)
LENGTHS = (128, 512)
"""Where texts become longer ones, in tokens: the cap holds for those of each length."""
EVERY = "all retain texts"
LEAST_RISE, LEAST_MEAN = 1.0, 0.1
"""Evidence below which nothing fires, whatever the retain texts allow: that of one token, a tenth of the skill's."""
MOST_MEAN = 0.9
"""Evidence of a mean that is always enough."""


@dataclass(frozen=True)
class Accumulation:
    """How one side's values accumulate, and what that leaves.

    `limits`: evidence of a text's best stretch, and of its mean, with which the guard fires, and `decided` which texts
    set each. `recalls`: by kind of forget text, the share that passes them. `margin`: the evidence that the recall
    needs in the kind where it is least, over the limits; 1 or more where both promises can be kept.
    """

    rise: Rise
    mean: MessageMean
    limits: tuple[float, float]
    decided: tuple[str, str]
    recalls: Mapping[str, float]
    margin: float

    @property
    def hardest(self) -> str:
        """The kind of forget text of which the least share passes."""
        return min(self.recalls, key=self.recalls.__getitem__)

    @property
    def quality(self) -> tuple[float, float, float]:
        """By which the best is chosen: the recall of the hardest kind, that of all kinds, then room."""
        recalls = list(self.recalls.values())
        return round(min(recalls), 2), round(sum(recalls) / len(recalls), 3), round(self.margin, 2)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A direction over some layers, with the best accumulation of prompts."""

    terms: tuple[LayerWeights, ...]
    accumulation: Accumulation

    @property
    def layers(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(term.layer for term in self.terms)


def gathered(
    values: Sequence[Tensor], turns: Sequence[Turns], strategies: Sequence[Rise | MessageMean]
) -> list[Tensor]:
    """The evidence so far of each strategy at each token of each text, float32 [T, S]."""
    rises = torch.tensor([isinstance(each, Rise) for each in strategies])
    return [torch.where(rises, 1 / read_TS - 1, 1 - read_TS) for read_TS in read_texts(values, turns, strategies)]


def judged(evidence: Sequence[Tensor], *, written: bool) -> Tensor:
    """What a guard judges a text by, [E, S]: a prompt at its last token, an answer at every one."""
    return torch.stack([each_TS.amax(dim=0) if written else each_TS[-1] for each_TS in evidence])


def margins(evidence_N2: Tensor, limits: Sequence[float]) -> Tensor:
    """Evidence of stretch and mean over what is needed to fire, of the one of which there is more, float32 [N]."""
    return (evidence_N2 / torch.tensor(limits)).amax(dim=-1)


def retain_groups(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Examples for which the cap holds by themselves: of a source, of a surrounding, of a length."""
    groups: dict[str, list[int]] = {}
    for index, each in enumerate(examples):
        longer = [length for length in LENGTHS if len(each.ids) > length]
        length = f"texts of more than {longer[-1]} tokens" if longer else f"texts of at most {LENGTHS[0]} tokens"
        for name in (each.source or each.row, length):
            groups.setdefault(name, []).append(index)
    return groups


def _forget_groups(examples: Sequence[Example]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, each in enumerate(examples):
        for name in dict.fromkeys((each.row, each.source or each.row)):
            groups.setdefault(name, []).append(index)
    return groups


def _limits(
    evidence_E2: Tensor, groups: Mapping[str, Sequence[int]], cap: float
) -> tuple[tuple[float, float], tuple[str, str]]:
    """The least evidence of each kind with which half of the cap is kept, and which texts set it.

    By all retain texts together, as split conformal prediction has it; and by every group by itself, of which no more
    may fire than does not contradict it. One outlier of a small group says little of that group's rate, and must not
    decide how much of the skill is caught.
    """
    found = []
    for part, least in enumerate((LEAST_RISE, LEAST_MEAN)):
        evidence_E = evidence_E2[:, part]
        bounds = {EVERY: -false_abstention_bound(-evidence_E, cap / 2)}
        for name, members in groups.items():
            above = evidence_E[members].sort(descending=True).values[tolerated(len(members), cap / 2) :]
            bounds[name] = -below(-float(above[0])) if len(above) else 0.0
        worst = max(bounds, key=bounds.__getitem__)
        found.append((max(bounds[worst], least), worst))
    (rise, by), (mean, mean_by) = found
    return (rise, mean), (by, mean_by)


def accumulate(
    examples: Sequence[Example],
    values: Sequence[Tensor],
    turns: Sequence[Turns],
    options: SpanOptions,
    *,
    written: bool,
) -> Accumulation:
    """The best way for prompts, or for answers. `values`: float32 [T] of each example, of both sides."""
    rises = [Rise(kappa, written) for kappa in KAPPAS]
    means = [MessageMean(weight, written) for weight in WEIGHTS]
    evidence_ES = judged(gathered(values, turns, [*rises, *means]), written=written)
    forget, retain = ([i for i, each in enumerate(examples) if each.side == side] for side in ("forget", "retain"))
    retained, forgotten = (evidence_ES[members] for members in (retain, forget))
    retain_of, forget_of = retain_groups([examples[i] for i in retain]), _forget_groups([examples[i] for i in forget])
    found = []
    for (i, rise), (j, mean) in product(enumerate(rises), enumerate(means, start=len(rises))):
        limits, decided = _limits(retained[:, [i, j]], retain_of, options.max_false_abstention)
        margin_E = margins(forgotten[:, [i, j]], limits)
        recalls = {name: float((margin_E[members] >= 1).float().mean()) for name, members in forget_of.items()}
        margin = min(-conformal_tau(-margin_E[members], options.recall) for members in forget_of.values())
        found.append(Accumulation(rise, mean, limits, decided, recalls, margin))
    return max(found, key=lambda each: each.quality)


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The one of the best accumulation; of equals the one of the most layers."""
    return max(candidates, key=lambda each: (each.accumulation.quality, len(each.layers)))


def judgements(of: Accumulation, placement: PlacementName) -> tuple[Judgement, Judgement]:
    """With both taus: as much evidence as the retain texts allow, or more where the recall leaves room."""
    room = max(1.0, of.margin)
    rise, mean = (limit * (room if placement == "tight" else room**0.5) for limit in of.limits)
    rise_tau, mean_tau = torch.tensor([1 / (1 + rise), 1 - min(mean, MOST_MEAN)]).tolist()
    return Judgement(of.rise, rise_tau), Judgement(of.mean, mean_tau)


def needed(judgement: Judgement) -> float:
    """The evidence with which it fires."""
    return 1 / judgement.tau - 1 if isinstance(judgement.over_tokens, Rise) else 1 - judgement.tau
