"""The entry of the registry."""

from guards.calibration.entry import Entry
from guards.core.verdict import GuardKind
from guards.methods.lunar.entry import LUNAR
from guards.methods.lunar_abstain.options import AbstainOptions

LUNAR_ABSTAIN = Entry(
    name=LUNAR.name,
    variant="abstain",
    kind=GuardKind.DETECTOR,
    package="guards.methods.lunar_abstain",
    options=AbstainOptions,
    summary=LUNAR.summary,
    about="abstains on texts that a given change of the variant redirect would redirect, by the same w",
)
