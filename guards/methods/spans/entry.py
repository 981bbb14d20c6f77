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
    about="a direction in the key vectors of several layers, accumulated along the text, which other text\n"
    "beside a question does not dilute; prompts and answers are judged apart",
)
