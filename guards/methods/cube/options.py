"""Options of a cube's calibration."""

from dataclasses import dataclass
from typing import Literal

from guards.calibration.options import DetectorOptions, option

RegimeName = Literal["last-token", "all-tokens"]


@dataclass(frozen=True, kw_only=True)
class CubeOptions(DetectorOptions):
    """Key Space Detection as in the paper: a cube of one layer for each frame.

    `regime`: which tokens of an example are fitted.
    """

    regime: RegimeName = option("last-token", "which tokens of an example a cube is fitted on")
