"""What callers and operators may see of a loaded guard."""

from guards.core.policy import Rule
from guards.core.verdict import GuardMode
from guards.methods.loaded import LoadedGuard
from server.engines.base import GuardInfo


def describe(loaded: LoadedGuard) -> GuardInfo:
    """Its name, what it is for, and, in `detail`, what only operators are shown."""
    manifest = loaded.artifact.manifest
    return GuardInfo(
        name=loaded.artifact.name,
        skill=manifest.skill,
        method=loaded.method.name,
        kind=loaded.method.kind,
        rule=Rule(GuardMode.ENFORCE, loaded.guard.scope, loaded.taus),
        layers=loaded.guard.layers,
        frames=manifest.calibration.frames,
        template_sha256=manifest.calibration.template_sha256,
        digest=loaded.artifact.digest,
        detail={
            "parameters": manifest.parameters,
            "calibration": manifest.calibration.model_dump(mode="json"),
            "canaries": len(manifest.canaries),
        },
    )
