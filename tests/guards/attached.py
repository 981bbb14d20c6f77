"""What the tests of attached guards share: attaching, counting hooks, reading a pass, fitting on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from guards.contract.guard import Guard, default_rules
from guards.contract.method import Method
from guards.core.policy import Policy
from guards.core.verdict import Scope
from guards.inside.transformers.attach import Attachment
from guards.inside.transformers.sites import find_sites
from guards.methods.cube.guard import CubeFitter, CubeGuard, Regime
from guards.methods.lunar.guard import LunarGuard
from guards.methods.neuron_adjust.guard import NeuronAdjustGuard
from guards.methods.probe_project.guard import ProjectionGuard
from guards.methods.registry import CUBE, LUNAR, NEURON_ADJUST, PROBE_PROJECT, SELECTIVE_PRUNING, SPANS
from guards.methods.rmu.entry import VARIANTS
from guards.methods.rmu.guard import RmuGuard
from guards.methods.selective_pruning.guard import PruningGuard
from guards.methods.spans.guard import SpanGuard
from guards.model.sites import Place, Site
from tests.models import CONFIGS, D_FF, LAYERS
from tests.toys import PROBE
from tests.toys.probe.guard import ProbeGuard

KINDS = sorted(CONFIGS)
LENGTH = 6


def entry(guard: Guard) -> tuple[Method, Guard]:
    """The guard with its method."""
    methods: dict[type, Method] = {
        CubeGuard: CUBE,
        SpanGuard: SPANS,
        NeuronAdjustGuard: NEURON_ADJUST,
        PruningGuard: SELECTIVE_PRUNING,
        LunarGuard: LUNAR,
        RmuGuard: VARIANTS["adaptive"],
        ProjectionGuard: PROBE_PROJECT,
        ProbeGuard: PROBE,
    }
    return methods[type(guard)], guard


def attach(model: nn.Module, **guards: Guard) -> Attachment:
    """Guards by name."""
    return Attachment(model, find_sites(model), {name: entry(guard) for name, guard in guards.items()})


def hooks(model: nn.Module) -> int:
    """Hooks on the model and all of its modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@dataclass(frozen=True)
class Readings:
    """What every guard says about R rows, under its own rules: codes [R, G], and values [R, parts] by guard."""

    names: tuple[str, ...]
    codes_RG: Tensor
    scores: Mapping[str, Tensor]


def take(attachment: Attachment, rows: int) -> Readings:
    """The readings of the pass that just ended."""
    taken, columns = attachment.take(rows), attachment.columns
    policy = Policy(default_rules(attachment.bound, dict.fromkeys(attachment.bound, Scope.BOTH)))
    readings = columns.readings(taken.rows_RX, columns.taus([policy] * rows), taken.missing)
    codes = torch.tensor([[of_row[name][0] for name in columns.guards] for of_row in readings], dtype=torch.int64)
    values = {name: torch.tensor([of_row[name][1] for of_row in readings]) for name in columns.guards}
    return Readings(columns.guards, codes.reshape(rows, len(columns.guards)), values)


def read(model: nn.Module, attachment: Attachment, ids: Tensor, **arguments: Any) -> Readings:
    """One forward pass and its readings for every token."""
    model(input_ids=ids, **arguments)
    return take(attachment, ids.numel())


def keys(model: nn.Module, ids: Tensor, layer: int = LAYERS - 1) -> Tensor:
    """Key vectors of one layer, by a hook of our own."""
    seen: list[Tensor] = []
    module = find_sites(model).tap(Place(layer, Site.KEY)).module
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, D_FF).clone()))
    model(input_ids=ids)
    handle.remove()
    return seen[0]


def fitted(model: nn.Module, ids: Tensor, layer: int = LAYERS - 1) -> CubeGuard:
    """A detector fitted on all tokens of some prompts."""
    fitter = CubeFitter(D_FF)
    fitter.update(keys(model, ids, layer))
    return CubeGuard((fitter.finish(layer, "bare"),), Scope.BOTH, Regime.ALL_TOKENS)
