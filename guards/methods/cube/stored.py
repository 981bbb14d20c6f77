"""Key Space Detection on disk and on a device."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from guards.artifact.manifest import PositiveFloat32, Strict
from guards.artifact.store import Artifact, parse_parameters, refuse_extra_tensors, take_deviations, take_tensor
from guards.contract.guard import Column, Health, OverRanks, Part
from guards.errors import ArtifactError
from guards.methods.cube.guard import Cube, CubeBank, CubeGuard, Regime
from guards.model.shard import Shard
from guards.model.sites import Place, Site


class CubeRecord(Strict):
    """A cube's scalars; its vectors are tensors `cube.<index>.mean` and `cube.<index>.std`."""

    layer: Annotated[int, Field(ge=0)]
    frame: str
    k: PositiveFloat32
    tau: PositiveFloat32


class CubeParameters(Strict):
    """The manifest's `parameters` for method "ksd", variant "paper"; manifests older than variants name none."""

    variant: Literal["paper"] = "paper"
    regime: Regime = Field(strict=False)
    cubes: tuple[CubeRecord, ...] = Field(min_length=1, max_length=256)


def load(artifact: Artifact) -> CubeGuard:
    """Validates parameters and tensors against the manifest's model. Raises ArtifactError."""
    manifest = artifact.manifest
    parameters = parse_parameters(artifact, CubeParameters)
    width, cubes, names = manifest.model.d_ff, [], set()
    for index, record in enumerate(parameters.cubes):
        if record.layer >= manifest.model.layers:
            raise ArtifactError(
                f"{artifact.name}: cube {index}: got layer {record.layer}, wanted below {manifest.model.layers}"
            )
        mean = take_tensor(artifact, f"cube.{index}.mean", (width,), torch.float32)
        std = take_deviations(artifact, f"cube.{index}.std", width)
        names |= {f"cube.{index}.mean", f"cube.{index}.std"}
        cubes.append(Cube(record.layer, record.frame, mean, std, record.k, record.tau))
    refuse_extra_tensors(artifact, names)
    return CubeGuard(tuple(cubes), manifest.scope, parameters.regime)


def dump(guard: CubeGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors for the artifact."""
    tensors = {}
    for index, cube in enumerate(guard.cubes):
        tensors[f"cube.{index}.mean"] = cube.mean_F.float().cpu()
        tensors[f"cube.{index}.std"] = cube.std_F.float().cpu()
    records = tuple(CubeRecord(layer=c.layer, frame=c.frame, k=c.k, tau=c.tau) for c in guard.cubes)
    return CubeParameters(regime=guard.regime, cubes=records).model_dump(mode="json"), tensors


class BoundCubes:
    """Cubes on a device, or their slice there: the score of a whole cube is the largest of its slices'."""

    health: Health | None = None

    def __init__(self, guard: CubeGuard, device: torch.device, shard: Shard) -> None:
        self.parts = tuple(Part(cube.frame, (cube.layer,)) for cube in guard.cubes)
        self.columns = tuple(
            Column(Place(cube.layer, Site.KEY), part, OverRanks.MAX) for part, cube in enumerate(guard.cubes)
        )
        self.taus = tuple(cube.tau for cube in guard.cubes)
        self._guard, self._device, self._shard = guard, device, shard

    def at(self, place: Place, width: int) -> CubeBank:
        """What scores the cubes of this layer."""
        columns, here = self._shard.columns(width), [cube for cube in self._guard.cubes if cube.layer == place.layer]
        mean_CF = torch.stack([cube.mean_F[columns] for cube in here]).to(self._device)
        std_CF = torch.stack([cube.std_F[columns] for cube in here]).to(self._device)
        return CubeBank(mean_CF, std_CF.reciprocal())


bind = BoundCubes
