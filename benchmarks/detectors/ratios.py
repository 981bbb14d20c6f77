"""What guards say of prompts, whatever variant they are, from one pass over the prompts.

Suffixes: T tokens of an example, E examples, C columns of a guard at one place, P parts of a guard.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from guards.calibration.accumulated import read_texts, turns_of
from guards.calibration.activations import Activations, Pass, TokenIds, Tokens
from guards.contract.guard import Bound, Guard
from guards.contract.method import Method
from guards.contract.turns import Turns
from guards.errors import CalibrationError
from guards.model.shard import WHOLE
from guards.model.sites import Place, Site

Name = TypeVar("Name")


class Detector(NamedTuple):
    """A guard that judges, and the method that made it."""

    method: Method
    guard: Guard


class _Act(NamedTuple):
    """A guard at a place: what computes its columns, the part of each, and where each example's values add up."""

    module: nn.Module
    part_C: Tensor
    values: list[Tensor]


def _acts(model: Activations, bound: Sequence[Bound], values: Sequence[list[Tensor]]) -> dict[int, list[_Act]]:
    """All that runs, by layer."""
    found: dict[int, list[_Act]] = {}
    for each, into in zip(bound, values, strict=True):
        by_place: dict[Place, list[int]] = {}
        for column in each.columns:
            by_place.setdefault(column.place, []).append(column.part)
        for place, parts in by_place.items():
            assert place.site is Site.KEY, "detectors look at key vectors"
            module = each.at(place, model.width(place.site))
            found.setdefault(place.layer, []).append(_Act(module, torch.tensor(parts), into))
    return found


def _values(model: Activations, bound: Sequence[Bound], examples: Sequence[TokenIds]) -> list[list[Tensor]]:
    """What each guard's parts say of every token, summed over layers: float32 [T, P] of each example."""
    found = [[torch.zeros(len(ids), len(each.parts)) for ids in examples] for each in bound]
    acts = _acts(model, bound, found)

    def consume(layer: int, x_TF: Tensor, example_T: Tensor) -> None:
        example_E, count_E = torch.unique_consecutive(example_T.cpu(), return_counts=True)
        position_T = torch.cat([torch.arange(count) for count in count_E.tolist()]).to(x_TF.device)
        for act in acts[layer]:
            parts = torch.split(act.module(x_TF, position_T).float().cpu(), count_E.tolist())
            for example, cells_TC in zip(example_E.tolist(), parts, strict=True):
                act.values[example].index_add_(1, act.part_C, cells_TC)

    model.stream(Pass(Site.KEY, tuple(sorted(acts)), Tokens.ALL), examples, consume)
    return found


def _judged(bound: Bound, values: Sequence[Tensor], turns: Sequence[Turns]) -> Tensor:
    """Score over tau [E] of the part that judges prompts and is the most decisive, at the last token."""
    ratios = []
    for part, (each, tau) in enumerate(zip(bound.parts, bound.taus, strict=True)):
        over = each.over_tokens
        if getattr(over, "written", False):  # judges answers, of which a prompt has none
            continue
        value_T = [value_TP[:, part] for value_TP in values]
        if over.width:
            value_T = [read_TC[:, 0] for read_TC in read_texts(value_T, turns, [over])]
        ratios.append(torch.stack([each_T[-1] for each_T in value_T]) / tau)
    return torch.stack(ratios).amin(dim=0)


@torch.no_grad()
def ratios(model: Activations, detectors: Mapping[Name, Detector], examples: Sequence[TokenIds]) -> dict[Name, Tensor]:
    """Score over tau [E] of each guard's most decisive judgement of a prompt, at its last token.

    A server abstains where it is at most 1. Every tau is positive, so prompts are ordered as their scores are; a score
    may be below 0. Raises CalibrationError on a score that is not finite.
    """
    bound = [each.method.bind(each.guard, model.device, WHOLE) for each in detectors.values()]
    turns = [turns_of(ids, model.codec.openings) for ids in examples]
    found = {}
    for name, each, values in zip(detectors, bound, _values(model, bound, examples), strict=True):
        found[name] = _judged(each, values, turns)
        if not bool(torch.isfinite(found[name]).all()):
            raise CalibrationError(f"{name}: a score is not finite: the model overflows on these texts in this dtype")
    return found
