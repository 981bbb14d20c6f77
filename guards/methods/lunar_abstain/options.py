"""Options of the calibration of a LUNAR change's gate as a detector."""

from dataclasses import dataclass
from pathlib import Path

from guards.calibration.options import option
from guards.errors import CalibrationError
from guards.methods.lunar.options import CHANGE_HELP
from guards.methods.spans.options import SpanOptions


@dataclass(frozen=True, kw_only=True)
class AbstainOptions(SpanOptions):
    """A guard over spans whose weights are given. Site and layer are those of the change."""

    change: Path | None = option(None, CHANGE_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.site != "key":
            raise CalibrationError(f"got `site` {self.site}, wanted key: w weighs key vectors")
        if self.layer is not None:
            raise CalibrationError(f"got `layer` {self.layer}, wanted none: the layer is that of `change`")
