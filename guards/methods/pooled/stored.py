"""Pooled Key Space Detection on disk and on a device."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from guards.artifact.manifest import Strict
from guards.artifact.store import Artifact, parse_parameters, refuse_extra_tensors, take_tensor
from guards.contract.accumulate import MEAN
from guards.contract.guard import Column, Health, OverRanks, Part
from guards.errors import ArtifactError
from guards.methods.pooled.guard import LayerWeights, PooledBank, PooledGuard
from guards.model.shard import Shard
from guards.model.sites import Place, Site

VARIANT: Literal["pooled"] = "pooled"


class TermRecord(Strict):
    """A layer's scalars; its weights are the tensor `term.<index>.weight`."""

    layer: Annotated[int, Field(ge=0)]
    offset: float


class PooledParameters(Strict):
    """The manifest's `parameters` for method "ksd", variant "pooled"."""

    variant: Literal["pooled"]
    tau: Annotated[float, Field(gt=0)]
    terms: tuple[TermRecord, ...] = Field(min_length=1, max_length=256)


def load(artifact: Artifact) -> PooledGuard:
    """Validates parameters and tensors against the manifest's model. Raises ArtifactError."""
    manifest = artifact.manifest
    parameters = parse_parameters(artifact, PooledParameters)
    layers = [record.layer for record in parameters.terms]
    if layers != sorted(set(layers)) or layers[-1] >= manifest.model.layers:
        raise ArtifactError(
            f"{artifact.name}: got layers {layers}, wanted them ascending, each once, below {manifest.model.layers}"
        )
    terms, names = [], set()
    for index, record in enumerate(parameters.terms):
        name = f"term.{index}.weight"
        weight_F = take_tensor(artifact, name, (manifest.model.d_ff,), torch.float32)
        if not bool(weight_F.any()):
            raise ArtifactError(f"{artifact.name}: {name}: got zeros, which score nothing; calibrate again")
        terms.append(LayerWeights(record.layer, weight_F, record.offset))
        names.add(name)
    refuse_extra_tensors(artifact, names)
    return PooledGuard(tuple(terms), parameters.tau, manifest.scope)


def dump(guard: PooledGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors for the artifact."""
    records = tuple(TermRecord(layer=term.layer, offset=term.offset) for term in guard.terms)
    tensors = {f"term.{index}.weight": term.weight_F.float().cpu() for index, term in enumerate(guard.terms)}
    return PooledParameters(variant=VARIANT, tau=guard.tau, terms=records).model_dump(mode="json"), tensors


class BoundPooled:
    """A pooled guard on a device, or its slice there of every layer's weights.

    Its score is linear, so layers and slices add up to the one number of a token that the mean is over.
    """

    health: Health | None = None

    def __init__(self, guard: PooledGuard, device: torch.device, shard: Shard) -> None:
        self.parts = (Part("", guard.layers, MEAN),)
        self.columns = tuple(Column(Place(layer, Site.KEY), 0, OverRanks.SUM) for layer in guard.layers)
        self.taus = (guard.tau,)
        self._guard, self._device, self._shard = guard, device, shard

    def at(self, place: Place, width: int) -> PooledBank:
        """What gives this layer's share of a token's number; the offset is dealt evenly over ranks."""
        (term,) = [term for term in self._guard.terms if term.layer == place.layer]
        offset = torch.tensor(term.offset / self._shard.count, dtype=torch.float32, device=self._device)
        return PooledBank(term.weight_F[self._shard.columns(width)].to(self._device), offset)


bind = BoundPooled
