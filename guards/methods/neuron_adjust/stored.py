"""Neuron Adjust on disk and on a device."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from guards.artifact.manifest import PositiveFloat32, Strict
from guards.artifact.store import (
    Artifact,
    parse_parameters,
    refuse_extra_tensors,
    take_deviations,
    take_neurons,
    take_tensor,
)
from guards.contract.guard import NEURONS, Column, Health, OverRanks, Part
from guards.errors import ArtifactError
from guards.methods.neuron_adjust.guard import LAYER_FIELDS, Adjuster, Draw, LayerStatistics, NeuronAdjustGuard
from guards.model.shard import Shard
from guards.model.sites import Place, Site

_FIELDS = ("forget_mean", "forget_std", "retain_mean", "retain_std")


class AdjustedLayerRecord(Strict):
    """How many neurons of a layer were selected; tensors `layer.<index>.neurons` and the four statistics."""

    layer: Annotated[int, Field(ge=0)]
    neurons: Annotated[int, Field(ge=1)]


class NeuronAdjustParameters(Strict):
    """The manifest's `parameters` for method "neuron-adjust"."""

    fraction: Annotated[PositiveFloat32, Field(le=1)]
    draw: Draw = Field(strict=False)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    layers: tuple[AdjustedLayerRecord, ...] = Field(min_length=1)


def load(artifact: Artifact) -> NeuronAdjustGuard:
    """Validates parameters and tensors against the manifest's model. Raises ArtifactError."""
    manifest = artifact.manifest
    parameters = parse_parameters(artifact, NeuronAdjustParameters)
    statistics: dict[int, LayerStatistics] = {}
    names = set()
    for record in parameters.layers:
        layer, prefix = record.layer, f"layer.{record.layer}"
        if layer >= manifest.model.layers or layer in statistics:
            raise ArtifactError(
                f"{artifact.name}: got layer {layer} twice or above the model's {manifest.model.layers} layers"
            )
        neurons = take_neurons(artifact, f"{prefix}.neurons", record.neurons, ("d_ff", manifest.model.d_ff))
        values = [
            take_deviations(artifact, f"{prefix}.{field}", record.neurons)
            if field.endswith("std")
            else take_tensor(artifact, f"{prefix}.{field}", (record.neurons,), torch.float32)
            for field in _FIELDS
        ]
        names |= {f"{prefix}.neurons", *(f"{prefix}.{field}" for field in _FIELDS)}
        statistics[layer] = LayerStatistics(neurons, *values)
    refuse_extra_tensors(artifact, names)
    return NeuronAdjustGuard(statistics, parameters.fraction, parameters.draw, parameters.seed, manifest.scope)


def dump(guard: NeuronAdjustGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors for the artifact."""
    tensors: dict[str, Tensor] = {}
    records = []
    for layer in guard.layers:
        entry = guard.layers_statistics[layer]
        records.append(AdjustedLayerRecord(layer=layer, neurons=entry.neurons_S.numel()))
        tensors[f"layer.{layer}.neurons"] = entry.neurons_S.cpu()
        values = (entry.forget_mean_S, entry.forget_std_S, entry.retain_mean_S, entry.retain_std_S)
        for field, value in zip(_FIELDS, values, strict=True):
            tensors[f"layer.{layer}.{field}"] = value.float().cpu()
    parameters = NeuronAdjustParameters(
        fraction=guard.fraction, draw=guard.draw, seed=guard.seed, layers=tuple(records)
    )
    return parameters.model_dump(mode="json"), tensors


class BoundNeuronAdjust:
    """A Neuron Adjust guard on a device, or its slice there of every layer."""

    taus: tuple[float, ...] = ()
    health: Health | None = NEURONS

    def __init__(self, guard: NeuronAdjustGuard, device: torch.device, shard: Shard) -> None:
        self.parts = (Part("", guard.layers),)
        self.columns = tuple(Column(Place(layer, Site.PRE_ACTIVATION), 0, OverRanks.SUM) for layer in guard.layers)
        self._guard, self._device, self._shard = guard, device, shard

    def at(self, place: Place, width: int) -> Adjuster:
        """What adjusts the selected neurons of this layer."""
        statistics, columns = self._guard.layers_statistics[place.layer], self._shard.columns(width)
        here_S = self._shard.holds(statistics.neurons_S, width)
        mine = LayerStatistics(*(getattr(statistics, name)[here_S].to(self._device) for name in LAYER_FIELDS))
        return Adjuster(mine, columns.start, place.layer, self._guard.draw, self._guard.seed)


bind = BoundNeuronAdjust
