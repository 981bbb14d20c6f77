"""Options of trainings: those that all take, and those of the RMU family."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from guards.calibration.options import CommonOptions, option
from guards.errors import CalibrationError

VariantName = Literal["adaptive", "rmu", "cosine", "probe"]

_ALPHA = "weight of the retain loss beside the forget loss"


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(CommonOptions):
    """What all trainings take.

    `steps`: raising it withholds more and disturbs the rest more. `rate`: Adam's, the same all the time. `alpha`:
    raising it keeps more of the rest and withholds less. `max_rank`: of what is served; a rank costs ``d_ff + d_model``
    multiplications a token and layer. `kept`: share of what the whole delta gains that the served rank must gain.
    """

    variant: ClassVar[str]

    steps: int = option(150, "steps of training; more withhold more and disturb the rest more")
    batch: int = option(4, "examples of each side in a step")
    length: int = option(512, "tokens of an example that are trained on, from its beginning")
    rate: float = option(5e-5, "learning rate of Adam")
    alpha: float = option(1200.0, _ALPHA)
    max_rank: int = option(64, "largest rank that is served in each trained layer")
    kept: float = option(0.95, "share of what the whole delta gains that its served rank must gain")
    checkpoint: Path | None = option(
        None, "file that keeps the training's state, from which a stopped calibration goes on to the same result"
    )
    checkpoint_every: int = option(25, "steps between two states of that file")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch", "length", "max_rank", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise CalibrationError(f"got `{name}` {getattr(self, name)}, wanted at least 1")
        for name in ("rate", "alpha"):
            if not 0 < getattr(self, name) < float("inf"):
                raise CalibrationError(f"got `{name}` {getattr(self, name)}, wanted a number above 0")
        if not 0 < self.kept <= 1:
            raise CalibrationError(f"got `kept` {self.kept}, wanted a share above 0 and up to 1")


@dataclass(frozen=True, kw_only=True)
class FamilyOptions(TrainingOptions):
    """What all variants of the RMU family take."""

    variant: ClassVar[VariantName]


@dataclass(frozen=True, kw_only=True)
class LayerOptions(FamilyOptions):
    """What variants take that move the output of one block: its own projection is trained, and the two before."""

    layer: int | None = option(
        None, "block whose output is moved by its own projection and the two before (default: 7/32 up the model)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None and self.layer < 2:
            raise CalibrationError(f"got `layer` {self.layer}, wanted 2 or more: the two blocks before are trained too")


@dataclass(frozen=True, kw_only=True)
class AdaptiveOptions(LayerOptions):
    """Adaptive RMU. `beta`: how much longer than they were forget states become, in another direction."""

    variant: ClassVar[VariantName] = "adaptive"

    beta: float = option(5.0, "length that forget states are given, in their own")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < float("inf"):
            raise CalibrationError(f"got `beta` {self.beta}, wanted a number above 0")


@dataclass(frozen=True, kw_only=True)
class RmuOptions(LayerOptions):
    """RMU. `c`: length that forget states are given; one below their own moves nothing (Zephyr-7B: 6.5)."""

    variant: ClassVar[VariantName] = "rmu"

    c: float = option(6.5, "length that forget states are given, the same in all models")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.c < float("inf"):
            raise CalibrationError(f"got `c` {self.c}, wanted a number above 0")


@dataclass(frozen=True, kw_only=True)
class CosineOptions(LayerOptions):
    """Cosine RMU. `alpha` is where the learned one begins. `retain_worth` is what it is learned by: how much lower a
    forget loss must be to make up for a retain loss that is higher by 1.
    """

    variant: ClassVar[VariantName] = "cosine"

    alpha: float = option(1.0, _ALPHA + ", where it begins: it is learned")
    alpha_rate: float = option(1e-2, "learning rate of alpha, 0: alpha stays as it is")
    retain_worth: float = option(1.0, "weight of the retain loss in the reward that alpha is learned by")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha_rate < float("inf"):
            raise CalibrationError(f"got `alpha_rate` {self.alpha_rate}, wanted 0 or a number above")
        if not 0 < self.retain_worth < float("inf"):
            raise CalibrationError(f"got `retain_worth` {self.retain_worth}, wanted a number above 0")


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(FamilyOptions):
    """The probe objective: nine layers, three neighbours early, amid and late, each with a probe and a projection."""

    variant: ClassVar[VariantName] = "probe"
