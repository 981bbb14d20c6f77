"""Options of the toy probe."""

from dataclasses import dataclass

from guards.calibration.options import CommonOptions, option


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(CommonOptions):
    """`first` and `second`: the layers that are looked at."""

    first: int = option(2, "one layer")
    second: int = option(4, "a later layer")
