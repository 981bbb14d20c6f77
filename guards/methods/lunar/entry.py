"""The entry of the registry."""

from guards.calibration.entry import Entry
from guards.core.drift import DELTA_DRIFT
from guards.core.verdict import GuardKind
from guards.methods.lunar.options import LunarOptions

LUNAR = Entry(
    name="lunar",
    variant="redirect",
    kind=GuardKind.INTERVENTION,
    package="guards.methods.lunar",
    drift=DELTA_DRIFT,
    options=LunarOptions,
    summary="LUNAR: redirect the skill's prompts to where the model cannot answer",
    about="changes one layer, so that the model itself says something else",
)
