"""Artifacts as an engine takes them: read, those that were asked for, and checked for canaries."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from guards.artifact.pins import ArtifactPath, shown_digest
from guards.artifact.store import Artifact, read_artifact
from guards.calibration.entry import Entry
from guards.contract.guard import Bound, Guard
from guards.errors import ArtifactError, UntrustedArtifactError
from guards.methods.registry import load_guard, method_of
from guards.model.shard import WHOLE


@dataclass(frozen=True)
class LoadedGuard:
    """An artifact, its method and the guard it holds.

    `pinned`: whether its digest was asked for. `signed_by`: the trusted keys that vouch for it.
    """

    artifact: Artifact
    method: Entry
    guard: Guard
    pinned: bool = False
    signed_by: tuple[str, ...] = ()

    @cached_property
    def bound(self) -> Bound:
        """The whole guard on the host: what it reads and changes, and by which taus it judges."""
        return self.method.bind(self.guard, torch.device("cpu"), WHOLE)


def read_guards(
    sources: Sequence[ArtifactPath | Path], *, verifiable: bool = True, trusted: AbstractSet[str] | None = None
) -> dict[str, LoadedGuard]:
    """Reads artifacts by folder name.

    `verifiable`: only those with a canary on which the guard fires, which proves at start that it works. `trusted`:
    only those that one of these public keys has signed; None asks for no signature. Raises ArtifactError on the first
    bad one, or when two share a name.
    """
    guards: dict[str, LoadedGuard] = {}
    for source in map(ArtifactPath.parse, sources):
        folder, artifact = source.folder, read_artifact(source.folder)
        if artifact.name in guards:
            raise ArtifactError(f"{folder}: got a second artifact named {artifact.name!r}; rename one of the folders")
        signed_by = _refuse_untrusted(source, artifact, trusted)
        if verifiable and not any(canary.fires for canary in artifact.manifest.canaries):
            raise ArtifactError(
                f"{folder}: holds no canary on which its guard fires, so it cannot be verified at start: "
                "calibrate it on this model, or import it again with `model`"
            )
        guards[artifact.name] = LoadedGuard(
            artifact, method_of(artifact), load_guard(artifact), source.digest is not None, signed_by
        )
    return guards


def _refuse_untrusted(source: ArtifactPath, artifact: Artifact, trusted: AbstractSet[str] | None) -> tuple[str, ...]:
    """The trusted keys that signed the artifact. Raises UntrustedArtifactError for another digest, or without a key."""
    if source.digest is not None and source.digest != artifact.digest:
        raise UntrustedArtifactError(
            f"{source.folder}: got {shown_digest(artifact.digest)}, and it is pinned to {shown_digest(source.digest)}: "
            "bring back the artifact that was pinned, or, if this one is meant, pin its digest"
        )
    if trusted is None:
        return ()
    signed_by = tuple(key for key in artifact.signers if key in trusted)
    if not signed_by:
        got = ", ".join(f"{key[:16]}..." for key in artifact.signers) or "no signature"
        raise UntrustedArtifactError(
            f"{source.folder}: got {f'signatures of {got}' if artifact.signers else got}, wanted one of "
            f"{', '.join(f'{key[:16]}...' for key in sorted(trusted))} (`trusted_key_files`): `skillguard sign` it "
            "with a trusted key"
        )
    return signed_by
