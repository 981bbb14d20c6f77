"""A change's gate on disk and on a device: a direction at one layer, as a guard over spans is."""

from typing import Any, Literal

from torch import Tensor

from guards.artifact.store import Artifact
from guards.methods.spans.guard import SpanGuard
from guards.methods.spans.stored import BoundSpans, LinearParameters, dump_linear, load_linear

VARIANT: Literal["abstain"] = "abstain"


class AbstainParameters(LinearParameters):
    """The manifest's `parameters` for method "lunar", variant "abstain"."""

    variant: Literal["abstain"]


def load(artifact: Artifact) -> SpanGuard:
    """Validates parameters and tensors against the manifest's model. Raises ArtifactError."""
    return load_linear(artifact, AbstainParameters)


def dump(guard: SpanGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors for the artifact."""
    return dump_linear(guard, VARIANT)


bind = BoundSpans
