"""What the tests of attached guards share: attaching, counting hooks, reading a pass, fitting on it."""

from typing import Any

from torch import Tensor, nn

from guards.contract.guard import Guard
from guards.contract.method import Method
from guards.core.verdict import Scope
from guards.inside.transformers.attach import Attachment, Readings
from guards.methods.cube.guard import METHOD as KSD
from guards.methods.cube.guard import KSDFitter, KSDGuard, Regime
from guards.methods.neuron_adjust.guard import METHOD as NEURON_ADJUST
from guards.methods.neuron_adjust.guard import NeuronAdjustGuard
from guards.methods.pooled.guard import PooledGuard
from guards.methods.registry import METHODS
from guards.methods.selective_pruning.guard import METHOD as PRUNE
from guards.methods.selective_pruning.guard import PruneGuard
from guards.model.sites import FAMILIES, find_sites
from tests.models import D_FF, LAYERS

KINDS = sorted(FAMILIES)
LENGTH = 6


def entry(guard: Guard) -> tuple[Method, Guard]:
    """The guard with its method."""
    names: dict[type, str] = {KSDGuard: KSD, PooledGuard: KSD, NeuronAdjustGuard: NEURON_ADJUST, PruneGuard: PRUNE}
    return METHODS[names[type(guard)]], guard


def attach(model: nn.Module, **guards: Guard) -> Attachment:
    """Guards by name."""
    return Attachment(model, find_sites(model), {name: entry(guard) for name, guard in guards.items()})


def hooks(model: nn.Module) -> int:
    """Hooks on the model and all of its modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def read(model: nn.Module, attachment: Attachment, ids: Tensor, **arguments: Any) -> Readings:
    """One forward pass and its readings for every token."""
    model(input_ids=ids, **arguments)
    return attachment.take(ids.numel())


def keys(model: nn.Module, ids: Tensor, layer: int = LAYERS - 1) -> Tensor:
    """Key vectors of one layer, by a hook of our own."""
    seen: list[Tensor] = []
    module = find_sites(model).layers[layer].key
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, D_FF).clone()))
    model(input_ids=ids)
    handle.remove()
    return seen[0]


def fitted(model: nn.Module, ids: Tensor, layer: int = LAYERS - 1) -> KSDGuard:
    """A detector fitted on all tokens of some prompts."""
    fitter = KSDFitter(D_FF)
    fitter.update(keys(model, ids, layer))
    return KSDGuard((fitter.finish(layer, "bare"),), Scope.BOTH, Regime.ALL_TOKENS)
