"""Artifacts as an engine takes them: read, checked for canaries, described. Shared by all engines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guards.artifact import Artifact, read_artifact
from guards.errors import ArtifactError
from guards.methods import Guard, Method, load_guard, method_of
from server.engines.base import GuardInfo


@dataclass(frozen=True)
class LoadedGuard:
    """An artifact, its method and the guard it holds."""

    artifact: Artifact
    method: Method
    guard: Guard

    def describe(self) -> GuardInfo:
        """What callers and operators may see of it."""
        manifest = self.artifact.manifest
        return GuardInfo(
            name=self.artifact.name,
            skill=manifest.skill,
            method=self.method.name,
            kind=self.method.kind,
            scope=self.guard.scope,
            layers=self.guard.layers,
            frames=manifest.calibration.frames,
            template_sha256=manifest.calibration.template_sha256,
            digest=self.artifact.digest,
            detail={
                "parameters": manifest.parameters,
                "calibration": manifest.calibration.model_dump(mode="json"),
                "canaries": len(manifest.canaries),
            },
        )


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
                "calibrate it on this model, or import it again with --model"
            )
        guards[artifact.name] = LoadedGuard(artifact, method_of(artifact), load_guard(artifact))
    return guards
