"""The variants of Key Space Detection under one method: the paper's cubes, and the pooled discriminant."""

import json
from typing import Any

import torch
from torch import Tensor

from guards.artifact.store import Artifact
from guards.methods.cube import stored as ksd_artifact
from guards.methods.cube.guard import KSDGuard
from guards.methods.pooled import stored as pooled_artifact
from guards.methods.pooled.guard import PooledGuard
from guards.model.shard import Shard


def load(artifact: Artifact) -> KSDGuard | PooledGuard:
    """The guard of the variant that the parameters name. Raises ArtifactError."""
    parameters = json.loads(artifact.parameters_json)
    if isinstance(parameters, dict) and parameters.get("variant") == pooled_artifact.VARIANT:
        return pooled_artifact.load(artifact)
    return ksd_artifact.load(artifact)


def dump(guard: KSDGuard | PooledGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors for the artifact."""
    return pooled_artifact.dump(guard) if isinstance(guard, PooledGuard) else ksd_artifact.dump(guard)


def bind(
    guard: KSDGuard | PooledGuard, device: torch.device, shard: Shard
) -> ksd_artifact.BoundKSD | pooled_artifact.BoundPooled:
    """The guard on a device, or its slice there."""
    if isinstance(guard, PooledGuard):
        return pooled_artifact.BoundPooled(guard, device, shard)
    return ksd_artifact.BoundKSD(guard, device, shard)
