"""What guards say of prompts, whatever variant they are. Suffixes: E examples, P parts of a guard, T tokens."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from guards.methods.ksd_variants import bind
from torch import Tensor

from guards.calibration.activations import Activations, TokenIds, Tokens
from guards.errors import CalibrationError
from guards.methods.cube.guard import CubeGuard
from guards.methods.cube.stored import BoundCubes
from guards.methods.pooled.guard import PooledGuard
from guards.methods.pooled.stored import BoundPooled
from guards.model.shard import WHOLE
from guards.model.sites import Site

Name = TypeVar("Name")
Detector = CubeGuard | PooledGuard
Bound = BoundCubes | BoundPooled


def _scores(
    model: Activations, bound: Mapping[Name, Bound], examples: Sequence[TokenIds], tokens: Tokens
) -> dict[Name, Tensor]:
    """Scores [E, P] of guards that all read the same token's key; NaN where the model handed over none."""
    here = {
        layer: {name: each.at(layer) for name, each in bound.items() if layer in each.layers}
        for layer in sorted({layer for each in bound.values() for layer in each.layers})
    }
    found = {name: torch.zeros(len(examples), len(each.parts), device=model.device) for name, each in bound.items()}
    heard = {layer: torch.full((len(examples), 1), torch.nan, device=model.device) for layer in here}

    def consume(layer: int, key_TF: Tensor, example_T: Tensor) -> None:
        heard[layer][example_T] = 0
        for name, (parts, bank) in here[layer].items():
            found[name][example_T.unsqueeze(1), torch.tensor(parts, device=model.device)] += bank(key_TF)

    if here:
        model.stream(Site.KEY, tuple(here), examples, consume, tokens=tokens, batch_tokens=None)
    return {name: score_EP + sum(heard[layer] for layer in bound[name].layers) for name, score_EP in found.items()}


@torch.no_grad()
def ratios(model: Activations, guards: Mapping[Name, Detector], examples: Sequence[TokenIds]) -> dict[Name, Tensor]:
    """Score over tau [E] of the part of each guard where it is smallest, at the end of the prompt.

    A server abstains where it is at most 1. Every tau is positive, so prompts are ordered as their scores are; a pooled
    score, and so its ratio, may be below 0. Raises CalibrationError on a score that is not finite.
    """
    bound = {name: bind(guard, model.device, WHOLE) for name, guard in guards.items()}
    scores: dict[Name, Tensor] = {}
    for tokens in (Tokens.LAST, Tokens.MEAN):
        mine = {name: each for name, each in bound.items() if each.pooled == (tokens is Tokens.MEAN)}
        scores |= _scores(model, mine, examples, tokens)
    found = {}
    for name, each in bound.items():
        assert each.taus is not None
        found[name] = (scores[name] / each.taus).amin(dim=1).cpu()
        if not bool(torch.isfinite(found[name]).all()):
            raise CalibrationError(f"{name}: a score is not finite: the model overflows on these texts in this dtype")
    return found
