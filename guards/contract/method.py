"""What serving needs of a method: how its guards are stored, bound, and verified. Light to import."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from guards.core.drift import Drift
from guards.core.verdict import GuardKind

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from guards.artifact.store import Artifact
    from guards.contract.guard import Bound, Guard
    from guards.model.shard import Shard


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method, or one variant of it, by the name that artifacts carry.

    `drift` is how far the scores of its canaries may drift. `package` is its folder. There, `stored.py` has
    `load(artifact)`, `dump(guard)` and `bind(guard, device, shard)`. It is imported when it is first needed.
    """

    name: str
    variant: str | None = None
    kind: GuardKind
    package: str
    drift: Drift = field(default_factory=Drift)

    def module(self, name: str) -> ModuleType:
        """A file of the method's folder."""
        return import_module(f"{self.package}.{name}")

    def load(self, artifact: "Artifact") -> "Guard":
        """The guard that an artifact holds. Raises ArtifactError on a parameter or tensor that is off."""
        return cast("Guard", self.module("stored").load(artifact))

    def dump(self, guard: "Guard") -> "tuple[dict[str, Any], Mapping[str, Tensor]]":
        """Parameters and tensors for an artifact."""
        return cast("tuple[dict[str, Any], Mapping[str, Tensor]]", self.module("stored").dump(guard))

    def bind(self, guard: "Guard", device: "torch.device", shard: "Shard") -> "Bound":
        """The guard with its tensors on a device, or its slice there."""
        return cast("Bound", self.module("stored").bind(guard, device, shard))
