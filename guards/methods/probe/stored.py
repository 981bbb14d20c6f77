"""Probes on disk and on a device: a direction over some layers, as a guard over spans is."""

from typing import Any, Literal

from torch import Tensor

from guards.artifact.store import Artifact
from guards.methods.spans.guard import SpanGuard
from guards.methods.spans.stored import BoundSpans, LinearParameters, dump_linear, load_linear

VARIANT: Literal["detect"] = "detect"


class ProbeParameters(LinearParameters):
    """The manifest's `parameters` for method "probe", variant "detect"."""

    variant: Literal["detect"]


def load(artifact: Artifact) -> SpanGuard:
    """Validates parameters and tensors against the manifest's model. Raises ArtifactError."""
    return load_linear(artifact, ProbeParameters)


def dump(guard: SpanGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors for the artifact."""
    return dump_linear(guard, VARIANT)


bind = BoundSpans
