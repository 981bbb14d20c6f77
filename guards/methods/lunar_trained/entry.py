"""The entry of the registry."""

from guards.calibration.entry import Entry
from guards.core.drift import DELTA_DRIFT
from guards.core.verdict import GuardKind
from guards.methods.lunar.entry import LUNAR
from guards.methods.lunar_trained.options import TrainedOptions

LUNAR_TRAINED = Entry(
    name=LUNAR.name,
    variant=TrainedOptions.variant,
    kind=GuardKind.INTERVENTION,
    package="guards.methods.lunar_trained",
    drift=DELTA_DRIFT,
    options=TrainedOptions,
    summary=LUNAR.summary,
    about="trains the layer of a given change of the variant redirect, as the paper does, and compares the two",
)
