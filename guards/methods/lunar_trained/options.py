"""Options of LUNAR's training."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from guards.calibration.material import Which
from guards.calibration.options import option
from guards.methods.lunar.options import CHANGE_HELP, LunarOptions
from guards.methods.rmu.options import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class TrainedOptions(TrainingOptions):
    """A training of the layer of `change`, to where that leads. With `alpha` 1 all tokens count alike, as in the solve.
    The paper's rate, 1e-2 and falling, is for batches of single tokens.
    """

    variant: ClassVar[str] = "trained"

    change: Path | None = option(None, CHANGE_HELP)
    material: Which = option("all", LunarOptions.__dataclass_fields__["material"].metadata["help"])
    rate: float = option(1e-3, TrainingOptions.__dataclass_fields__["rate"].metadata["help"])
    alpha: float = option(1.0, TrainingOptions.__dataclass_fields__["alpha"].metadata["help"])
