"""The entry of the registry."""

from guards.calibration.entry import Entry
from guards.core.verdict import GuardKind
from guards.methods.spans.options import SpanOptions

SPANS = Entry(
    name="ksd",
    variant="spans",
    kind=GuardKind.DETECTOR,
    package="guards.methods.spans",
    options=SpanOptions,
    summary="Key Space Detection: abstain on prompts whose key vectors are the skill's",
    about="a discriminant on the mean key vector of all tokens so far, over one or several layers, which\n"
    "holds in frames that were not calibrated too",
)
