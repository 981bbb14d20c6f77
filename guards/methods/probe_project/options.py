"""Options of the calibration of projections by probes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from guards.calibration.material import Which
from guards.calibration.options import CommonOptions, option
from guards.errors import CalibrationError
from guards.methods.probe.options import ProbeOptions


@dataclass(frozen=True, kw_only=True)
class ProjectOptions(CommonOptions):
    """Projections of the residual stream, at the layers where probes tell the skill best.

    `beta`: 1 puts a token that a probe takes for the skill's on the probe's boundary, 2 as far beyond it as it was
    before it; None takes what serves held-out prompts best. The other options are those of the detector, which without
    `answers` has the same probes of the same examples.
    """

    usual_frames: ClassVar[str] = ProbeOptions.usual_frames
    further_frames: ClassVar[tuple[str, ...]] = ProbeOptions.further_frames

    beta: float | None = option(
        None, "times the way to the probe's boundary, which 1 reaches (default: what serves held-out prompts best)"
    )
    layer: int | None = option(None, "the only layer (default: what separates best)")
    of_each_third: int = option(1, "layers that are changed of the early, the middle and the late third of the model")
    aggregation: Literal["spans", "last"] = option(
        "spans", ProbeOptions.__dataclass_fields__["aggregation"].metadata["help"]
    )
    material: Which = option("all", ProbeOptions.__dataclass_fields__["material"].metadata["help"])
    longest: int = option(2048, ProbeOptions.__dataclass_fields__["longest"].metadata["help"])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta is not None and not 0 < self.beta <= 100:
            raise CalibrationError(f"got `beta` {self.beta}, wanted a number above 0 and up to 100")
        if self.of_each_third < 1:
            raise CalibrationError(f"got `of_each_third` {self.of_each_third}, wanted at least 1")
        if self.layer is not None and self.of_each_third != ProjectOptions.of_each_third:
            raise CalibrationError(
                f"got `layer` {self.layer} and `of_each_third` {self.of_each_third}, wanted one of the two: a layer "
                "that is named is the only one that is changed"
            )

    def probes(self) -> ProbeOptions:
        """Those by which the detector fits the same probes."""
        return ProbeOptions(
            frames=self.frames,
            seed=self.seed,
            batch_tokens=self.batch_tokens,
            layer=self.layer,
            aggregation=self.aggregation,
            material=self.material,
            longest=self.longest,
        )
