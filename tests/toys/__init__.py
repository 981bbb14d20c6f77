"""Two methods that do not exist, as a package beside this project would bring them: a folder each and an entry."""

from guards.calibration.entry import Entry
from guards.core.verdict import GuardKind
from tests.toys.halving.options import HalvingOptions
from tests.toys.probe.options import ProbeOptions

PROBE = Entry(
    name="toy-probe",
    kind=GuardKind.DETECTOR,
    package="tests.toys.probe",
    options=ProbeOptions,
    summary="Toy: a direction in the residual stream of two layers, at whichever token it is strongest",
)
HALVING = Entry(
    name="toy-halving",
    kind=GuardKind.INTERVENTION,
    package="tests.toys.halving",
    options=HalvingOptions,
    summary="Toy: halve the neurons that the skill uses most",
)
