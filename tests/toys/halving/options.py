"""Options of the toy halving."""

from dataclasses import dataclass

from guards.calibration.options import CommonOptions, option


@dataclass(frozen=True, kw_only=True)
class HalvingOptions(CommonOptions):
    """`neurons`: how many are halved."""

    neurons: int = option(8, "how many neurons of the last layer are halved")
