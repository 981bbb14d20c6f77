"""What guards say of prompts, whatever variant they are. Suffixes: E examples, C columns and P parts of a guard."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from guards.calibration.activations import Activations, Pass, TokenIds, Tokens
from guards.contract.accumulate import MEAN, TOKEN, OverTokens
from guards.contract.guard import Bound
from guards.errors import CalibrationError
from guards.methods.cube.guard import CubeGuard
from guards.methods.pooled.guard import PooledGuard
from guards.methods.registry import CUBE, POOLED
from guards.model.shard import WHOLE
from guards.model.sites import Place, Site

Name = TypeVar("Name")
Detector = CubeGuard | PooledGuard

SEEN: Mapping[OverTokens, Tokens] = {TOKEN: Tokens.LAST, MEAN: Tokens.MEAN}
"""What a guard is shown of a prompt in the place of all tokens. Columns that are averaged are linear in what they see,
so that what they say of the mean vector is the mean of what they say."""


class _Act(NamedTuple):
    """Columns of a guard at a place: what computes them, which of its outputs are wanted, and where they go."""

    module: nn.Module
    outputs: list[int]
    cells_EC: Tensor
    columns: list[int]


def _bind(guard: Detector, device: torch.device) -> Bound:
    return (CUBE if isinstance(guard, CubeGuard) else POOLED).bind(guard, device, WHOLE)


def _cells(model: Activations, bound: Sequence[Bound], examples: Sequence[TokenIds]) -> list[Tensor]:
    """What each guard's columns say at the end of each prompt [E, C]; NaN where the model handed nothing over."""
    found = [torch.full((len(examples), len(each.columns)), torch.nan, device=model.device) for each in bound]
    acts: defaultdict[tuple[Site, Tokens], defaultdict[int, list[_Act]]] = defaultdict(lambda: defaultdict(list))
    for each, cells_EC in zip(bound, found, strict=True):
        at: defaultdict[Place, list[int]] = defaultdict(list)
        for index, column in enumerate(each.columns):
            at[column.place].append(index)
        for place, here in at.items():
            module = each.at(place, model.width(place.site))
            by_tokens: defaultdict[Tokens, list[int]] = defaultdict(list)
            for output, index in enumerate(here):
                by_tokens[SEEN[each.parts[each.columns[index].part].over_tokens]].append(output)
            for tokens, outputs in by_tokens.items():
                act = _Act(module, outputs, cells_EC, [here[output] for output in outputs])
                acts[place.site, tokens][place.layer].append(act)
    last_E = torch.tensor([len(ids) - 1 for ids in examples], device=model.device)
    for (site, tokens), by_layer in acts.items():

        def consume(layer: int, x_EF: Tensor, example_E: Tensor, by_layer: Mapping[int, list[_Act]] = by_layer) -> None:
            for act in by_layer[layer]:
                columns = torch.tensor(act.columns, device=model.device)
                act.cells_EC[example_E.unsqueeze(1), columns] = act.module(x_EF, last_E[example_E])[:, act.outputs]

        model.stream(Pass(site, tuple(sorted(by_layer)), tokens), examples, consume)
    return found


@torch.no_grad()
def ratios(model: Activations, guards: Mapping[Name, Detector], examples: Sequence[TokenIds]) -> dict[Name, Tensor]:
    """Score over tau [E] of the part of each guard where it is smallest, at the end of the prompt.

    A server abstains where it is at most 1. Every tau is positive, so prompts are ordered as their scores are; a pooled
    score, and so its ratio, may be below 0. Raises CalibrationError on a score that is not finite.
    """
    bound = {name: _bind(guard, model.device) for name, guard in guards.items()}
    found = {}
    for (name, each), cells_EC in zip(bound.items(), _cells(model, list(bound.values()), examples), strict=True):
        part_C = torch.tensor([column.part for column in each.columns], device=model.device)
        score_EP = cells_EC.new_zeros(len(examples), len(each.parts)).index_add_(1, part_C, cells_EC)
        found[name] = (score_EP / torch.tensor(each.taus, device=model.device)).amin(dim=1).cpu()
        if not bool(torch.isfinite(found[name]).all()):
            raise CalibrationError(f"{name}: a score is not finite: the model overflows on these texts in this dtype")
    return found
