"""The entry of the registry."""

from guards.calibration.entry import Entry
from guards.core.verdict import GuardKind
from guards.methods.cube.options import CubeOptions

CUBE = Entry(
    name="ksd",
    variant="paper",
    kind=GuardKind.DETECTOR,
    package="guards.methods.cube",
    options=CubeOptions,
    summary="Key Space Detection: abstain on prompts whose key vectors are the skill's",
    about="a cube around the last token's key vectors, one layer for each frame",
)
