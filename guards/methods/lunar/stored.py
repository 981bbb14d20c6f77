"""LUNAR on disk and on a device."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from guards.artifact.manifest import PositiveFloat32, Strict
from guards.artifact.store import Artifact, parse_parameters, refuse_extra_tensors
from guards.calibration.material import Reference
from guards.errors import ArtifactError
from guards.methods.delta import BoundDelta, FactorsRecord, dump_deltas, take_deltas
from guards.methods.lunar.guard import LunarGuard
from guards.model.shard import Shard


class ChangeParameters(Strict):
    """What manifests' `parameters` of all changes of one layer have."""

    reference: Reference
    strength: PositiveFloat32
    layers: Annotated[tuple[FactorsRecord, ...], Field(min_length=1, max_length=1)]


class LunarParameters(ChangeParameters):
    """The manifest's `parameters` for method "lunar", variant "redirect"."""

    variant: Literal["redirect"] = "redirect"
    ridge: PositiveFloat32


def load(artifact: Artifact) -> LunarGuard:
    """Validates parameters and tensors against the manifest's model. Raises ArtifactError."""
    parameters = parse_parameters(artifact, LunarParameters)
    if (rank := parameters.layers[0].rank) != 1:
        raise ArtifactError(f"{artifact.name}: got a change of rank {rank}, wanted 1")
    deltas, names = take_deltas(artifact, parameters.layers)
    refuse_extra_tensors(artifact, names)
    return LunarGuard(deltas, parameters.reference, parameters.strength, parameters.ridge, artifact.manifest.scope)


def dump(guard: LunarGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors for the artifact."""
    records, tensors = dump_deltas(guard.deltas)
    parameters = LunarParameters.model_validate(
        {"reference": guard.reference, "strength": guard.strength, "ridge": guard.ridge, "layers": records}
    )
    return parameters.model_dump(mode="json"), tensors


def bind(guard: LunarGuard, device: torch.device, shard: Shard) -> BoundDelta:
    """The guard on a device, or a rank's slice of it."""
    return BoundDelta(guard.deltas, device, shard)
