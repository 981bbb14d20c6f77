"""Selective Pruning on disk and on a device."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from guards.artifact.manifest import Float32, Strict
from guards.artifact.store import Artifact, parse_parameters, refuse_extra_tensors, take_neurons
from guards.contract.guard import NEURONS, Column, Health, OverRanks, Part
from guards.errors import ArtifactError, AttachError
from guards.methods.selective_pruning.guard import Importance, Pruner, PruningGuard
from guards.model.shard import Shard
from guards.model.sites import Place, Site

Portion = Annotated[Float32, Field(ge=0, le=1)]
_RECORDED = {Site.KEY: "feed_forward", Site.ATTENTION: "attention"}


class PrunedLayerRecord(Strict):
    """How many neurons of a layer are pruned; tensors `layer.<index>.feed_forward` and `layer.<index>.attention`."""

    layer: Annotated[int, Field(ge=0)]
    feed_forward: Annotated[int, Field(ge=0)]
    attention: Annotated[int, Field(ge=0)]


class PruningParameters(Strict):
    """The manifest's `parameters` for method "selective-pruning"."""

    importance: Importance = Field(strict=False)
    fraction: Portion
    attention_fraction: Portion
    steps: Annotated[int, Field(ge=1)]
    d_attention: Annotated[int, Field(ge=1)]
    layers: tuple[PrunedLayerRecord, ...] = Field(min_length=1)


def load(artifact: Artifact) -> PruningGuard:
    """Validates parameters and tensors against the manifest's model. Raises ArtifactError."""
    model = artifact.manifest.model
    parameters = parse_parameters(artifact, PruningParameters)
    widths = {Site.KEY: ("d_ff", model.d_ff), Site.ATTENTION: ("d_attention", parameters.d_attention)}
    pruned: dict[Site, dict[int, Tensor]] = {site: {} for site in _RECORDED}
    names, seen = set(), set()
    for record in parameters.layers:
        if record.layer >= model.layers or record.layer in seen:
            raise ArtifactError(
                f"{artifact.name}: got layer {record.layer} twice or above the model's {model.layers} layers"
            )
        if not record.feed_forward + record.attention:
            raise ArtifactError(f"{artifact.name}: got layer {record.layer} without a neuron, wanted it left out")
        seen.add(record.layer)
        for site, field in _RECORDED.items():
            if count := getattr(record, field):
                name = f"layer.{record.layer}.{field}"
                pruned[site][record.layer] = take_neurons(artifact, name, count, widths[site])
                names.add(name)
    refuse_extra_tensors(artifact, names)
    return PruningGuard(
        pruned[Site.KEY],
        pruned[Site.ATTENTION],
        parameters.d_attention,
        parameters.fraction,
        parameters.attention_fraction,
        parameters.steps,
        parameters.importance,
        artifact.manifest.scope,
    )


def dump(guard: PruningGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors for the artifact."""
    tensors, records = {}, []
    for layer in guard.layers:
        counts = {}
        for site, field in _RECORDED.items():
            neurons = guard.at(site).get(layer)
            counts[field] = 0 if neurons is None else neurons.numel()
            if neurons is not None:
                tensors[f"layer.{layer}.{field}"] = neurons.cpu()
        records.append(PrunedLayerRecord(layer=layer, **counts))
    parameters = PruningParameters(
        importance=guard.importance,
        fraction=guard.fraction,
        attention_fraction=guard.attention_fraction,
        steps=guard.steps,
        d_attention=guard.d_attention,
        layers=tuple(records),
    )
    return parameters.model_dump(mode="json"), tensors


class BoundPruning:
    """A pruning guard on a device, or its slice there of every layer."""

    taus: tuple[float, ...] = ()
    health: Health | None = NEURONS

    def __init__(self, guard: PruningGuard, device: torch.device, shard: Shard) -> None:
        self.parts = (Part("", guard.layers),)
        self.columns = tuple(Column(place, 0, OverRanks.SUM) for place in guard.places)
        self._guard, self._device, self._shard = guard, device, shard

    def at(self, place: Place, width: int) -> Pruner:
        """What zeroes the pruned neurons of this place."""
        if place.site is Site.ATTENTION and width != self._guard.d_attention:
            raise AttachError(
                f"got attention vectors of {width} neurons, the guard was made for {self._guard.d_attention}: "
                "calibrate on this model"
            )
        neurons_S = self._guard.at(place.site)[place.layer]
        here_S = neurons_S[self._shard.holds(neurons_S, width)]
        return Pruner((here_S - self._shard.columns(width).start).to(self._device))


bind = BoundPruning
