"""The entry of the registry."""

from guards.calibration.entry import Entry
from guards.core.drift import FEW_NEURONS
from guards.core.verdict import GuardKind
from guards.methods.neuron_adjust.options import NeuronAdjustOptions

NEURON_ADJUST = Entry(
    name="neuron-adjust",
    kind=GuardKind.INTERVENTION,
    package="guards.methods.neuron_adjust",
    drift=FEW_NEURONS,
    options=NeuronAdjustOptions,
    summary="Neuron Adjust: shift the skill's neurons towards other text",
)
