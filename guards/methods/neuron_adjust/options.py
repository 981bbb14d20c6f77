"""Options of Neuron Adjust's calibration."""

from dataclasses import dataclass
from typing import Literal

from guards.calibration.options import CommonOptions, option
from guards.errors import CalibrationError

DrawName = Literal["random", "certain"]


@dataclass(frozen=True, kw_only=True)
class NeuronAdjustOptions(CommonOptions):
    """Neuron Adjust.

    `fraction`: share of all feed-forward neurons that are adjusted; raising it forgets more and disturbs the rest more
    (ESU: 0.005, 0.015 and 0.03). `draw`: "random" shifts with the paper's probability, "certain" whenever the value is
    likelier under the forget Gaussian.
    """

    fraction: float = option(0.03, "share of neurons adjusted")
    draw: DrawName = option("random", "shift by chance as in the paper, or always where it applies")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise CalibrationError(f"got `fraction` {self.fraction}, wanted a share above 0 and up to 1")
