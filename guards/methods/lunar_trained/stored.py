"""A trained change on disk and on a device."""

from typing import Any, Literal

from torch import Tensor

from guards.artifact.store import Artifact, parse_parameters, refuse_extra_tensors
from guards.methods.delta import dump_deltas, take_deltas
from guards.methods.lunar.guard import LunarGuard
from guards.methods.lunar.stored import ChangeParameters, bind

__all__ = ["bind", "dump", "load"]


class TrainedParameters(ChangeParameters):
    """The manifest's `parameters` for method "lunar", variant "trained"."""

    variant: Literal["trained"] = "trained"


def load(artifact: Artifact) -> LunarGuard:
    """Validates parameters and tensors against the manifest's model. Raises ArtifactError."""
    parameters = parse_parameters(artifact, TrainedParameters)
    deltas, names = take_deltas(artifact, parameters.layers)
    refuse_extra_tensors(artifact, names)
    return LunarGuard(deltas, parameters.reference, parameters.strength, None, artifact.manifest.scope)


def dump(guard: LunarGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors for the artifact."""
    records, tensors = dump_deltas(guard.deltas)
    parameters = TrainedParameters.model_validate(
        {"reference": guard.reference, "strength": guard.strength, "layers": records}
    )
    return parameters.model_dump(mode="json"), tensors
