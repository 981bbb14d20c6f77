"""Options of Selective Pruning's calibration."""

from dataclasses import dataclass
from typing import Literal

from guards.calibration.options import CommonOptions, option
from guards.errors import CalibrationError

ImportanceName = Literal["abs", "freq", "rms", "std"]


@dataclass(frozen=True, kw_only=True)
class PruningOptions(CommonOptions):
    """Selective Pruning.

    `fraction` and `attention_fraction`: shares of all feed-forward and of all attention neurons that each step prunes
    (SP: 0.02, and 0 or 0.005; ESU: 0.015 once for mathematics, 0.0001 for code); raising them forgets more and damages
    the rest more. `steps`: every further one measures the model again with all that is pruned, and costs as much.
    `importance`: the statistic whose ratio between forget and retain text decides.
    """

    fraction: float = option(0.02, "share of all feed-forward neurons that each step prunes")
    attention_fraction: float = option(0.0, "share of all attention neurons that each step prunes; less selective")
    steps: int = option(1, "how often to measure and prune again, each as costly as the first")
    importance: ImportanceName = option(
        "abs",
        "what of a neuron's output is compared: mean size, how often it is positive, root mean square,\nor deviation",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, share in (("fraction", self.fraction), ("attention_fraction", self.attention_fraction)):
            if not 0 <= share * max(self.steps, 1) <= 1:
                raise CalibrationError(
                    f"got `{name}` {share} in each of {self.steps} step(s), wanted a share from 0 to 1 of all neurons"
                )
        if not self.fraction and not self.attention_fraction:
            raise CalibrationError("got `fraction` 0 and `attention_fraction` 0, wanted at least one above 0")
        if self.steps < 1:
            raise CalibrationError(f"got `steps` {self.steps}, wanted at least 1")
