"""A guard of the RMU family on disk and on a device."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from guards.artifact.manifest import Strict
from guards.artifact.store import Artifact, parse_parameters, refuse_extra_tensors
from guards.methods.delta import BoundDelta, FactorsRecord, dump_deltas, take_deltas
from guards.methods.rmu.guard import RmuGuard
from guards.methods.rmu.options import VariantName
from guards.model.shard import Shard


class RmuParameters(Strict):
    """The manifest's `parameters` for method "rmu"."""

    variant: VariantName
    layers: tuple[FactorsRecord, ...] = Field(min_length=1)


def load(artifact: Artifact) -> RmuGuard:
    """Validates parameters and tensors against the manifest's model. Raises ArtifactError."""
    parameters = parse_parameters(artifact, RmuParameters)
    deltas, names = take_deltas(artifact, parameters.layers)
    refuse_extra_tensors(artifact, names)
    return RmuGuard(parameters.variant, deltas, artifact.manifest.scope)


def dump(guard: RmuGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors for the artifact."""
    records, tensors = dump_deltas(guard.deltas)
    return RmuParameters(variant=guard.variant, layers=records).model_dump(mode="json"), tensors


def bind(guard: RmuGuard, device: torch.device, shard: Shard) -> BoundDelta:
    """The branches that serve it."""
    return BoundDelta(guard.deltas, device, shard)
