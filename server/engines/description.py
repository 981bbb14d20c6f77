"""What callers and operators may see of a loaded guard."""

from guards.artifact.canaries import bound_to_text, text_difference
from guards.core.beside import Beside
from guards.core.policy import Rule
from guards.core.verdict import GuardMode
from guards.methods.loaded import LoadedGuard
from guards.model.encoding import TextCodec
from server.engines.base import GuardInfo, TemplateState


def describe(loaded: LoadedGuard, codec: TextCodec, *, accept_template: bool, beside: Beside) -> GuardInfo:
    """Its name, what it is for, whether the live template fits, and, in `detail`, what only operators are shown."""
    manifest = loaded.artifact.manifest
    difference = text_difference(manifest, codec)
    if difference is not None:
        template = TemplateState.ACCEPTED if accept_template else TemplateState.CHANGED
    else:
        template = TemplateState.VERIFIED if bound_to_text(manifest) else TemplateState.UNBOUND
    return GuardInfo(
        name=loaded.artifact.name,
        skill=manifest.skill,
        method=loaded.method.name,
        variant=loaded.method.variant,
        kind=loaded.method.kind,
        rule=Rule(GuardMode.ENFORCE, loaded.guard.scope, loaded.bound.taus),
        layers=loaded.guard.layers,
        frames=manifest.calibration.frames,
        template_sha256=manifest.calibration.template_sha256,
        template=template,
        digest=loaded.artifact.digest,
        template_difference=difference,
        unit=None if loaded.bound.health is None else loaded.bound.health.unit,
        parts=tuple(part.label for part in loaded.bound.parts),
        pinned=loaded.pinned,
        signed_by=loaded.signed_by,
        quantiles=manifest.calibration.quantiles,
        beside=beside,
        detail={
            "parameters": manifest.parameters,
            "calibration": manifest.calibration.model_dump(mode="json"),
            "canaries": len(manifest.canaries),
        },
    )
