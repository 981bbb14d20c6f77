"""The entries of the registry, one a variant."""

from collections.abc import Mapping

from guards.calibration.entry import Entry
from guards.core.drift import DELTA_DRIFT
from guards.core.verdict import GuardKind
from guards.methods.rmu.options import (
    AdaptiveOptions,
    CosineOptions,
    FamilyOptions,
    ProbeOptions,
    RmuOptions,
    VariantName,
)

_ABOUT: Mapping[type[FamilyOptions], str] = {
    AdaptiveOptions: "forget states are sent to a random direction, at a multiple of their own length",
    RmuOptions: "the same at one length for all; WMDP's, whose lengths were chosen for Zephyr-7B",
    CosineOptions: "forget states are turned to a random direction, and the weight of what is retained is learned",
    ProbeOptions: "logistic probes of nine layers are fitted, and what they read of the last token is trained away",
}

VARIANTS: Mapping[VariantName, Entry] = {
    options.variant: Entry(
        name="rmu",
        variant=options.variant,
        kind=GuardKind.INTERVENTION,
        package="guards.methods.rmu",
        drift=DELTA_DRIFT,
        options=options,
        summary="RMU: train three layers to lose the skill's texts on the way; served as a switch beside the weights",
        about=about,
    )
    for options, about in _ABOUT.items()
}
RMU = tuple(VARIANTS.values())
