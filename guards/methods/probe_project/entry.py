"""The entry of the registry."""

from guards.calibration.entry import Entry
from guards.core.drift import DELTA_DRIFT
from guards.core.verdict import GuardKind
from guards.methods.probe.entry import PROBE
from guards.methods.probe_project.options import ProjectOptions

PROBE_PROJECT = Entry(
    name=PROBE.name,
    variant="project",
    kind=GuardKind.INTERVENTION,
    package="guards.methods.probe_project",
    drift=DELTA_DRIFT,
    options=ProjectOptions,
    summary=PROBE.summary,
    about="takes what each probe reads of the skill out of the residual stream, so that the model says something else",
)
