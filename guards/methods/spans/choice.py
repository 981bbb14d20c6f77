"""How values accumulate, and how much evidence is needed: chosen on the threshold part alone.

Suffixes: E examples, T tokens of an example, S strategies over tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from guards.calibration.accumulated import read_texts
from guards.calibration.corpus import SIDES
from guards.calibration.options import PlacementName
from guards.calibration.thresholds import below, false_abstention_bound, tolerated
from guards.contract.spans import Rise
from guards.contract.turns import Turns
from guards.errors import CalibrationError
from guards.methods.spans.examples import Example
from guards.methods.spans.guard import Judgement, LayerWeights, Strategy
from guards.methods.spans.options import SpanOptions

LENGTHS = (128, 512)
"""Where texts become longer ones, in tokens: the cap holds for those of each length."""
EVERY = "all retain texts"
LEAST_RISE, LEAST = 1.0, 0.1
"""Evidence of a stretch, and of anything else, below which nothing fires, whatever the retain texts allow: that of one
token, a tenth of the skill's.
"""
ROUNDING = 1e-5
"""Relative, over what a limit loses in a float32 tau and its score."""
MOST = 0.9
"""Evidence of a mean or a token that is always enough, where the retain texts allow no less."""
MOST_ALLOWED = 0.99
"""Evidence of a mean or a token that a tau can ask for: that of the skill's own mean, 1, would be a tau of 0."""


@dataclass(frozen=True)
class Accumulation:
    """How one side's values accumulate, and what that leaves.

    `limits`: evidence by each strategy with which the guard fires, and `decided` which texts set them. There is none
    where no strategy can keep the cap. `recalls`: by kind of forget text, the share that passes them. `margin`: the
    factor on the limits with which the recall, that of all kinds alike, is just what is wanted; 1 or more where both
    promises can be kept. `retained`: how many retain examples there were.
    """

    strategies: tuple[Strategy, ...]
    limits: tuple[float, ...]
    decided: str
    recalls: Mapping[str, float]
    margin: float
    retained: int

    @property
    def numbers(self) -> dict[str, float]:
        """What was chosen of its strategies, by name."""
        return {name: each for way in self.strategies for name, each in asdict(way).items() if name != "written"}

    @property
    def hardest(self) -> str:
        """The kind of forget text of which the least share passes."""
        return min(self.recalls, key=self.recalls.__getitem__)

    @property
    def recall(self) -> float:
        """That of all kinds alike. Not of the hardest: one that cannot be had would decide, and cost the others."""
        return sum(self.recalls.values()) / len(self.recalls)

    @property
    def quality(self) -> tuple[float, float, float]:
        """By which the best is chosen: while the recall that is wanted cannot be had, the recall, and that of the
        hardest kind; then room.
        """
        room = round(self.margin, 2)
        return (
            (1.0, 1.0, room)
            if self.margin >= 1
            else (round(self.recall, 2), round(min(self.recalls.values()), 2), room)
        )


@dataclass(frozen=True, eq=False)
class Candidate:
    """A direction over some layers, with the best accumulation of prompts."""

    terms: tuple[LayerWeights, ...]
    accumulation: Accumulation

    @property
    def layers(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(term.layer for term in self.terms)


def gathered(values: Sequence[Tensor], turns: Sequence[Turns], strategies: Sequence[Strategy]) -> list[Tensor]:
    """The evidence so far of each strategy at each token of each text, float32 [T, S]."""
    rises = torch.tensor([isinstance(each, Rise) for each in strategies])
    return [torch.where(rises, 1 / read_TS - 1, 1 - read_TS) for read_TS in read_texts(values, turns, strategies)]


def judged(evidence: Sequence[Tensor], *, written: bool) -> Tensor:
    """What a guard judges a text by, [E, S]: a prompt at its last token, an answer at every one."""
    return torch.stack([each_TS.amax(dim=0) if written else each_TS[-1] for each_TS in evidence])


def margins(evidence_NS: Tensor, limits: Sequence[float]) -> Tensor:
    """Evidence over what is needed to fire, of the strategy by which that is more, float32 [N]; 0 without any."""
    if not limits:
        return evidence_NS.new_zeros(len(evidence_NS))
    return (evidence_NS / torch.tensor(limits)).amax(dim=-1)


def retain_groups(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Examples that may not contradict the cap by themselves: of a source, of a surrounding, of a length."""
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


def _least(strategy: Strategy) -> float:
    return LEAST_RISE if isinstance(strategy, Rise) else LEAST


def _limits(
    evidence_ES: Tensor, strategies: Sequence[Strategy], groups: Mapping[str, Sequence[int]], cap: float
) -> tuple[tuple[float, ...], str]:
    """The least evidence by each strategy with which the cap is kept, and which texts set it.

    Their ratio is that of what keeps an equal part of the cap each. All are then raised or lowered together until the
    cap holds for them as one: by all retain texts, as split conformal prediction has it, and by every group by itself,
    of which no more may fire than does not contradict it. One outlier of a small group says little of that group's
    rate, and must not decide how much of the skill is caught.
    """
    least = [_least(each) for each in strategies]
    parts = [
        max(-false_abstention_bound(-evidence_E, cap / len(strategies)), each)
        for evidence_E, each in zip(evidence_ES.unbind(dim=1), least, strict=True)
    ]
    margin_E = margins(evidence_ES, parts)
    bounds = {EVERY: -false_abstention_bound(-margin_E, cap)}
    for name, members in groups.items():
        above = margin_E[members].sort(descending=True).values[tolerated(len(members), cap) :]
        bounds[name] = -below(-float(above[0])) if len(above) else 0.0
    worst = max(bounds, key=bounds.__getitem__)
    scale = bounds[worst] * (1 + ROUNDING)
    return tuple(max(part * scale, each) for part, each in zip(parts, least, strict=True)), worst


def _kept(
    evidence_ES: Tensor, way: tuple[Strategy, ...], groups: Mapping[str, Sequence[int]], cap: float
) -> tuple[list[int], tuple[float, ...], str]:
    """The strategies that can ask for as much evidence as the retain texts make them, and `_limits` of these."""
    kept = [*range(len(way))]
    while True:
        limits, decided = _limits(evidence_ES[:, kept], [way[at] for at in kept], groups, cap)
        fitting = [
            at for at, limit in zip(kept, limits, strict=True) if isinstance(way[at], Rise) or limit <= MOST_ALLOWED
        ]
        if len(fitting) == len(kept):
            return kept, limits, decided
        if not fitting:
            return [], (), decided
        kept = fitting


def _reached(margin_E: Tensor, groups: Mapping[str, Sequence[int]], recall: float) -> float:
    """The most that a share of `recall` of the examples reaches, where every group counts the same."""
    weight_E = torch.zeros(len(margin_E), dtype=torch.float64)
    for members in groups.values():
        weight_E[members] += 1 / (len(members) * len(groups))
    ascending_E, order_E = margin_E.sort()
    short_E = weight_E[order_E].cumsum(dim=0) <= 1 - recall + 1e-9
    return float(ascending_E[int(short_E.sum())])


def accumulate(
    examples: Sequence[Example],
    values: Sequence[Tensor],
    turns: Sequence[Turns],
    options: SpanOptions,
    ways: Sequence[tuple[Strategy, ...]],
    *,
    written: bool,
) -> Accumulation:
    """The best of several ways for prompts, or for answers. `values`: float32 [T] of each example, of both sides."""
    strategies = list(dict.fromkeys(each for way in ways for each in way))
    evidence_ES = judged(gathered(values, turns, strategies), written=written)
    forget, retain = ([i for i, each in enumerate(examples) if each.side == side] for side in SIDES)
    retained, forgotten = (evidence_ES[members] for members in (retain, forget))
    retain_of, forget_of = retain_groups([examples[i] for i in retain]), _forget_groups([examples[i] for i in forget])
    found = []
    for way in ways:
        own = [strategies.index(each) for each in way]
        kept, limits, decided = _kept(retained[:, own], way, retain_of, options.max_false_abstention)
        margin_E = margins(forgotten[:, [own[at] for at in kept]], limits)
        recalls = {name: float((margin_E[members] >= 1).float().mean()) for name, members in forget_of.items()}
        margin = _reached(margin_E, forget_of, options.recall)
        found.append(Accumulation(tuple(way[at] for at in kept), limits, decided, recalls, margin, len(retain)))
    return max(found, key=lambda each: each.quality)


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The one of the best accumulation; of equals the one of the most layers."""
    return max(candidates, key=lambda each: (each.accumulation.quality, len(each.layers)))


def judgements(of: Accumulation, placement: PlacementName) -> tuple[Judgement, ...]:
    """With taus: as much evidence as the retain texts allow, or more where the recall leaves room.

    Raises CalibrationError where they allow no tau at all.
    """
    if not of.strategies:
        raise CalibrationError(
            f"{of.decided} are as near to the skill as its own mean: no tau keeps `max_false_abstention`; nothing was "
            "written. Take texts that need the skill out of what is retained, or raise `max_false_abstention`"
        )
    room = max(1.0, of.margin)
    wanted = [limit * (room if placement == "tight" else room**0.5) for limit in of.limits]
    taus = torch.tensor(
        [
            1 / (1 + each) if isinstance(strategy, Rise) else 1 - max(limit, min(each, MOST))
            for strategy, limit, each in zip(of.strategies, of.limits, wanted, strict=True)
        ]
    )
    return tuple(Judgement(strategy, tau) for strategy, tau in zip(of.strategies, taus.tolist(), strict=True))


def needed(judgement: Judgement) -> float:
    """The evidence with which it fires."""
    return 1 / judgement.tau - 1 if isinstance(judgement.over_tokens, Rise) else 1 - judgement.tau
