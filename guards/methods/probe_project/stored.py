"""Projections by probes on disk and on a device."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from guards.artifact.manifest import Float32, PositiveFloat32, Strict
from guards.artifact.store import Artifact, parse_parameters, refuse_extra_tensors, take_tensor
from guards.contract.guard import PUSH, Column, Health, OverColumns, OverRanks, Part
from guards.errors import ArtifactError, AttachError
from guards.methods.probe_project.guard import Boundary, Projection, ProjectionGuard
from guards.model.shard import Shard
from guards.model.sites import Place, Site

UNIT = 1e-3
"""How far from 1 the length of a direction may be: far more than float32 rounds."""


class BoundaryRecord(Strict):
    """A layer's scalars; its direction is the tensor `layer.<layer>.w`."""

    layer: Annotated[int, Field(ge=0)]
    b: Float32
    usual: PositiveFloat32


class ProjectParameters(Strict):
    """The manifest's `parameters` for method "probe", variant "project"."""

    variant: Literal["project"] = "project"
    beta: PositiveFloat32
    layers: tuple[BoundaryRecord, ...] = Field(min_length=1, max_length=256)


def load(artifact: Artifact) -> ProjectionGuard:
    """Validates parameters and tensors against the manifest's model. Raises ArtifactError."""
    model = artifact.manifest.model
    parameters = parse_parameters(artifact, ProjectParameters)
    layers = [record.layer for record in parameters.layers]
    if layers != sorted(set(layers)) or layers[-1] >= model.layers:
        raise ArtifactError(
            f"{artifact.name}: got layers {layers}, wanted them ascending, each once, below {model.layers}"
        )
    found, names = [], set()
    for record in parameters.layers:
        name = f"layer.{record.layer}.w"
        w_D = take_tensor(artifact, name, (model.d_model,), torch.float32)
        if not abs((length := float(w_D.norm())) - 1) <= UNIT:
            raise ArtifactError(f"{artifact.name}: {name}: got a direction of length {length:.6g}, wanted 1")
        found.append(Boundary(record.layer, w_D, record.b, record.usual))
        names.add(name)
    refuse_extra_tensors(artifact, names)
    return ProjectionGuard(tuple(found), parameters.beta, artifact.manifest.scope)


def dump(guard: ProjectionGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors for the artifact."""
    records = tuple(BoundaryRecord(layer=each.layer, b=each.b, usual=each.usual) for each in guard.boundaries)
    parameters = ProjectParameters(beta=guard.beta, layers=records)
    return parameters.model_dump(mode="json"), {
        f"layer.{each.layer}.w": each.w_D.float().cpu() for each in guard.boundaries
    }


class BoundProjection:
    """Projections on a device. Every rank has the whole residual stream, and changes it alike.

    What it reads is how far it moved a token over the residual stream's usual length there, all layers together.
    """

    taus: tuple[float, ...] = ()
    health: Health | None = PUSH

    def __init__(self, guard: ProjectionGuard, device: torch.device, _: Shard) -> None:
        self.parts = (Part("", guard.layers, over_columns=OverColumns.LENGTH),)
        self.columns = tuple(Column(Place(layer, Site.RESIDUAL), 0, OverRanks.SAME) for layer in guard.layers)
        self._guard, self._device = guard, device

    def at(self, place: Place, width: int) -> Projection:
        """What acts behind this layer. Raises AttachError when it was made for a stream of another width."""
        (of,) = [each for each in self._guard.boundaries if each.layer == place.layer]
        if len(of.w_D) != width:
            raise AttachError(f"layer {place.layer}: the model's residual stream is {width} wide, not {len(of.w_D)}")
        return Projection(of, self._guard.beta, self._device)


bind = BoundProjection
