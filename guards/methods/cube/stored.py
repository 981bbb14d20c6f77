"""Key Space Detection on disk and on a device."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from guards.artifact.manifest import Strict, first_problem
from guards.artifact.store import Artifact, refuse_extra_tensors, take_tensor
from guards.core.part import Part
from guards.errors import ArtifactError
from guards.methods.cube.guard import Cube, CubeBank, KSDGuard, Regime
from guards.model.shard import WHOLE, Shard
from guards.model.sites import Site

PositiveFloat = Annotated[float, Field(gt=0)]


class CubeRecord(Strict):
    """A cube's scalars; its vectors are tensors `cube.<index>.mean` and `cube.<index>.std`."""

    layer: Annotated[int, Field(ge=0)]
    frame: str
    k: PositiveFloat
    tau: PositiveFloat


class KSDParameters(Strict):
    """The manifest's `parameters` for method "ksd", variant "paper"; manifests older than variants name none."""

    variant: Literal["paper"] = "paper"
    regime: Regime = Field(strict=False)
    cubes: tuple[CubeRecord, ...] = Field(min_length=1, max_length=256)


def load(artifact: Artifact) -> KSDGuard:
    """Validates parameters and tensors against the manifest's model. Raises ArtifactError."""
    manifest = artifact.manifest
    try:
        parameters = KSDParameters.model_validate_json(artifact.parameters_json)
    except ValidationError as error:
        raise ArtifactError(f"{artifact.name}: parameters.{first_problem(error)}") from error
    width, cubes, names = manifest.model.d_ff, [], set()
    for index, record in enumerate(parameters.cubes):
        if record.layer >= manifest.model.layers:
            raise ArtifactError(
                f"{artifact.name}: cube {index}: got layer {record.layer}, wanted below {manifest.model.layers}"
            )
        mean = take_tensor(artifact, f"cube.{index}.mean", (width,), torch.float32)
        std = take_tensor(artifact, f"cube.{index}.std", (width,), torch.float32)
        if not bool((std > 0).all()):
            raise ArtifactError(f"{artifact.name}: cube {index}: got a standard deviation <= 0; calibrate again")
        names |= {f"cube.{index}.mean", f"cube.{index}.std"}
        cubes.append(Cube(record.layer, record.frame, mean, std, record.k, record.tau))
    refuse_extra_tensors(artifact, names)
    return KSDGuard(tuple(cubes), manifest.scope, parameters.regime)


def dump(guard: KSDGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors for the artifact."""
    tensors = {}
    for index, cube in enumerate(guard.cubes):
        tensors[f"cube.{index}.mean"] = cube.mean_F.float().cpu()
        tensors[f"cube.{index}.std"] = cube.std_F.float().cpu()
    records = tuple(CubeRecord(layer=c.layer, frame=c.frame, k=c.k, tau=c.tau) for c in guard.cubes)
    return KSDParameters(regime=guard.regime, cubes=records).model_dump(mode="json"), tensors


class BoundKSD:
    """A KSD guard on a device, or its slice there of every cube."""

    site = Site.KEY
    pooled = False

    def __init__(self, guard: KSDGuard, device: torch.device, shard: Shard = WHOLE) -> None:
        self.layers = guard.layers
        self.parts = tuple(Part(cube.frame, cube.layer) for cube in guard.cubes)
        self.taus: Tensor | None = torch.tensor([c.tau for c in guard.cubes], dtype=torch.float32, device=device)
        self._guard, self._device, self._shard = guard, device, shard

    def at(self, layer: int) -> tuple[tuple[int, ...], CubeBank]:
        """The cubes at this layer: their part indices, and a bank that scores them in that order."""
        here = [(index, cube) for index, cube in enumerate(self._guard.cubes) if cube.layer == layer]
        columns = self._shard.columns(here[0][1].mean_F.numel())
        mean_CF = torch.stack([cube.mean_F[columns] for _, cube in here]).to(self._device)
        std_CF = torch.stack([cube.std_F[columns] for _, cube in here]).to(self._device)
        return tuple(index for index, _ in here), CubeBank(mean_CF, std_CF.reciprocal())
