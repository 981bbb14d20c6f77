"""Artifacts as an engine takes them: read, and checked for canaries."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guards.artifact.store import Artifact, read_artifact
from guards.contract.guard import Guard
from guards.contract.method import Method
from guards.errors import ArtifactError
from guards.methods.registry import load_guard, method_of


@dataclass(frozen=True)
class LoadedGuard:
    """An artifact, its method and the guard it holds."""

    artifact: Artifact
    method: Method
    guard: Guard


def read_guards(folders: Sequence[Path]) -> dict[str, LoadedGuard]:
    """Reads artifacts by folder name.

    Raises ArtifactError on the first bad one, when two share a name, or when one cannot be verified at start.
    """
    guards: dict[str, LoadedGuard] = {}
    for folder in folders:
        artifact = read_artifact(folder)
        if artifact.name in guards:
            raise ArtifactError(f"{folder}: got a second artifact named {artifact.name!r}; rename one of the folders")
        if not any(canary.fires for canary in artifact.manifest.canaries):
            raise ArtifactError(
                f"{folder}: holds no canary on which its guard fires, so it cannot be verified at start: "
                "calibrate it on this model, or import it again with `model`"
            )
        guards[artifact.name] = LoadedGuard(artifact, method_of(artifact), load_guard(artifact))
    return guards
