"""The entry of the registry."""

from guards.calibration.entry import Entry
from guards.core.drift import FEW_NEURONS
from guards.core.verdict import GuardKind
from guards.methods.selective_pruning.options import PruningOptions

SELECTIVE_PRUNING = Entry(
    name="selective-pruning",
    kind=GuardKind.INTERVENTION,
    package="guards.methods.selective_pruning",
    drift=FEW_NEURONS,
    options=PruningOptions,
    summary="Selective Pruning: set the skill's neurons to zero",
)
