"""Artifacts as an engine takes them: read, and checked for canaries."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from guards.artifact.store import Artifact, read_artifact
from guards.calibration.entry import Entry
from guards.contract.guard import Guard
from guards.errors import ArtifactError
from guards.methods.registry import load_guard, method_of
from guards.model.shard import WHOLE


@dataclass(frozen=True)
class LoadedGuard:
    """An artifact, its method and the guard it holds."""

    artifact: Artifact
    method: Entry
    guard: Guard

    @property
    def taus(self) -> tuple[float, ...]:
        """The artifact's own threshold of each part; none for an intervention."""
        return self.method.bind(self.guard, torch.device("cpu"), WHOLE).taus

    @property
    def parts(self) -> tuple[str, ...]:
        """The label of each part."""
        return tuple(part.label for part in self.method.bind(self.guard, torch.device("cpu"), WHOLE).parts)


def read_guards(folders: Sequence[Path], *, verifiable: bool = True) -> dict[str, LoadedGuard]:
    """Reads artifacts by folder name.

    `verifiable`: only those with a canary on which the guard fires, which proves at start that it works. Raises
    ArtifactError on the first bad one, or when two share a name.
    """
    guards: dict[str, LoadedGuard] = {}
    for folder in folders:
        artifact = read_artifact(folder)
        if artifact.name in guards:
            raise ArtifactError(f"{folder}: got a second artifact named {artifact.name!r}; rename one of the folders")
        if verifiable and not any(canary.fires for canary in artifact.manifest.canaries):
            raise ArtifactError(
                f"{folder}: holds no canary on which its guard fires, so it cannot be verified at start: "
                "calibrate it on this model, or import it again with `model`"
            )
        guards[artifact.name] = LoadedGuard(artifact, method_of(artifact), load_guard(artifact))
    return guards
