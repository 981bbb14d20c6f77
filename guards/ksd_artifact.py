"""Key Space Detection on disk and on a device."""

from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from guards.artifact import Artifact, Strict, first_problem, refuse_extra_tensors, take_tensor
from guards.errors import ArtifactError
from guards.ksd import Cube, KSDGuard, Regime, cube_score
from guards.part import Part
from guards.sites import Site

PositiveFloat = Annotated[float, Field(gt=0)]


class CubeRecord(Strict):
    """A cube's scalars; its vectors are tensors `cube.<index>.mean` and `cube.<index>.std`."""

    layer: Annotated[int, Field(ge=0)]
    frame: str
    k: PositiveFloat
    tau: PositiveFloat


class KSDParameters(Strict):
    """The manifest's `parameters` for method "ksd"."""

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
    """A KSD guard on a device. Keeps 1/sigma, so that a token costs one pass over its key vector."""

    site = Site.KEY

    def __init__(self, guard: KSDGuard, device: torch.device) -> None:
        self.layers = guard.layers
        self.parts = tuple(Part(cube.frame, cube.layer) for cube in guard.cubes)
        self.taus: Tensor | None = torch.tensor([c.tau for c in guard.cubes], dtype=torch.float32, device=device)
        self._cubes = [(c.layer, c.mean_F.to(device), c.std_F.to(device).reciprocal()) for c in guard.cubes]

    def score(self, layer: int, x_TF: Tensor) -> list[tuple[int, Tensor]]:
        """(cube index, s(x) [T]) for every cube at this layer."""
        return [
            (index, cube_score(x_TF, mean_F, inverse_std_F))
            for index, (at, mean_F, inverse_std_F) in enumerate(self._cubes)
            if at == layer
        ]
