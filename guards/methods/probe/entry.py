"""The entry of the registry."""

from guards.calibration.entry import Entry
from guards.core.verdict import GuardKind
from guards.methods.probe.options import ProbeOptions

PROBE = Entry(
    name="probe",
    variant="detect",
    kind=GuardKind.DETECTOR,
    package="guards.methods.probe",
    options=ProbeOptions,
    summary="Linear probes: a logistic regression at each of several layers, early, middle and late",
    about="abstains where the probes together see the skill, at the last token of a prompt or along the text",
)
