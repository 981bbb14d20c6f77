"""What somebody who has the weights gets back: a guard's change folded into them, and a few steps of training.

Suffixes: D residual width, F feed-forward width, S pruned neurons.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.methods.perplexity import losses
from guards.calibration.tuning import Example
from guards.contract.guard import Guard
from guards.inside.transformers.loading import LoadedModel
from guards.methods.delta import Factors
from guards.methods.lunar.guard import LunarGuard
from guards.methods.rmu.guard import RmuGuard
from guards.methods.selective_pruning.guard import PruningGuard
from guards.model.sites import Place, Site

STEPS = 10
RATE = 2e-5
"""AdamW's, as whole models are fine-tuned with."""

Change = Callable[[Tensor], Tensor]
"""Of a projection's weight, [outputs, inputs]."""


def _with(factors: Factors) -> Change:
    return lambda weight_DF: weight_DF + factors.b_DR.float() @ factors.a_RF.float()


def _without(gone_S: Tensor) -> Change:
    return lambda weight_DF: weight_DF.index_fill(1, gone_S, 0)


def changes(guard: Guard) -> Mapping[Place, Change]:
    """What a guard is as another weight of the projections that take what is at these places; none where it is none."""
    if isinstance(guard, LunarGuard | RmuGuard):
        return {Place(layer, Site.KEY): _with(factors) for layer, factors in guard.deltas.items()}
    if isinstance(guard, PruningGuard):
        return {place: _without(guard.at(place.site)[place.layer]) for place in guard.places}
    return {}


@contextmanager
def folded(loaded: LoadedModel, of: Mapping[Place, Change]) -> Iterator[None]:
    """Inside, the model's own weights are the changed ones. Raises TypeError for a projection that is not linear."""
    before: list[tuple[Tensor, Tensor]] = []
    try:
        for place, change in of.items():
            module = loaded.sites.tap(place).module
            if not isinstance(module, nn.Linear):
                raise TypeError(
                    f"layer {place.layer}: got a {type(module).__name__}, wanted a linear layer to fold into"
                )
            before.append((module.weight, module.weight.detach().clone()))
            module.weight.data.copy_(change(module.weight.detach().float()))
        yield
    finally:
        for weight, was in before:
            weight.data.copy_(was)


@contextmanager
def relearned(
    loaded: LoadedModel, of: Sequence[Example], steps: int = STEPS, rate: float = RATE
) -> Iterator[list[float]]:
    """Inside, all weights have been trained on these examples; gives the mean loss of a token before each step."""
    weights = list(loaded.model.parameters())
    before = [weight.detach().clone() for weight in weights]
    loaded.model.requires_grad_(True)
    try:
        yield _train(loaded, weights, of, steps, rate)
    finally:
        loaded.model.requires_grad_(False)
        for weight, was in zip(weights, before, strict=True):
            weight.data.copy_(was)


def _train(
    loaded: LoadedModel, weights: Sequence[nn.Parameter], of: Sequence[Example], steps: int, rate: float
) -> list[float]:
    adam = torch.optim.AdamW(weights, lr=rate)
    tokens = sum(len(ids) - first for ids, first in of)
    history = []
    for _ in range(steps):
        total = 0.0
        for batch in losses(loaded, of):
            loss = torch.cat(list(batch.values())).sum() / tokens
            torch.autograd.backward(loss)
            total += float(loss.detach())
        adam.step()
        adam.zero_grad()
        history.append(total)
    loaded.model.requires_grad_(False)
    return history
