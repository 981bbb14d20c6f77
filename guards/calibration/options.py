"""Options of calibration: the one home of each default. Light to import, so that `--help` is instant."""

from dataclasses import dataclass
from typing import Literal

from guards.core.verdict import Scope
from guards.errors import CalibrationError

RegimeName = Literal["last-token", "all-tokens"]
DrawName = Literal["random", "certain"]
PlacementName = Literal["tight", "middle"]
ImportanceName = Literal["abs", "freq", "rms", "std"]


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every method's calibration takes.

    `frames`: what surrounds each text ("chat", "bare" or a template with {text}); none given means "chat" where the
    model has a chat template, else "bare". `seed` fixes the splits. `batch_tokens`: padded tokens per forward pass, by
    default what suits the device; more costs memory and on a GPU saves time.
    """

    frames: tuple[str, ...] = ()
    seed: int = 0
    batch_tokens: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise CalibrationError(f"got `batch_tokens` {self.batch_tokens}, wanted at least 1")
        if len(set(self.frames)) != len(self.frames):
            raise CalibrationError(f"got `frames` {list(self.frames)}, wanted each once")


@dataclass(frozen=True, kw_only=True)
class DetectorOptions(CommonOptions):
    """What the variants of Key Space Detection share.

    `recall`: share of further forget prompts that must be caught. Raising it forgets more and costs retain prompts near
    the skill. `max_false_abstention`: share of retain prompts that may be refused; it wins over `recall`.
    `placement`: "tight" takes the smallest tau that reaches `recall`, "middle" one halfway to the largest that keeps
    the cap (`guards.calibration.thresholds.place_tau`). `layer`: None takes what separates best.
    """

    recall: float = 0.95
    max_false_abstention: float = 0.01
    placement: PlacementName = "tight"
    layer: int | None = None
    scope: Scope = Scope.BOTH

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.recall < 1:
            raise CalibrationError(f"got `recall` {self.recall}, wanted a share above 0 and below 1")
        if not 0 <= self.max_false_abstention < 1:
            raise CalibrationError(
                f"got `max_false_abstention` {self.max_false_abstention}, wanted a share from 0 to below 1"
            )


@dataclass(frozen=True, kw_only=True)
class KSDOptions(DetectorOptions):
    """Key Space Detection as in the paper: a cube of one layer for each frame.

    `regime`: which tokens of an example are fitted.
    """

    regime: RegimeName = "last-token"


@dataclass(frozen=True, kw_only=True)
class PooledOptions(DetectorOptions):
    """Key Space Detection on the mean key vector, the default variant.

    No frames given means several: the model's chat template, none, and POOLED_FRAME, since what several frames have in
    common is the skill.
    """

    recall: float = 0.98
    max_false_abstention: float = 0.005
    placement: PlacementName = "middle"


POOLED_FRAME = "Q: {text}\nA:"


@dataclass(frozen=True, kw_only=True)
class NeuronAdjustOptions(CommonOptions):
    """Neuron Adjust.

    `fraction`: share of all feed-forward neurons that are adjusted; raising it forgets more and disturbs the rest more
    (ESU: 0.005, 0.015 and 0.03). `draw`: "random" shifts with the paper's probability, "certain" whenever the value is
    likelier under the forget Gaussian.
    """

    fraction: float = 0.03
    draw: DrawName = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise CalibrationError(f"got `fraction` {self.fraction}, wanted a share above 0 and up to 1")


@dataclass(frozen=True, kw_only=True)
class PruneOptions(CommonOptions):
    """Selective Pruning.

    `fraction` and `attention_fraction`: shares of all feed-forward and of all attention neurons that each step prunes
    (SP: 0.02, and 0 or 0.005; ESU: 0.015 once for mathematics, 0.0001 for code); raising them forgets more and damages
    the rest more. `steps`: every further one measures the model again with all that is pruned, and costs as much.
    `importance`: the statistic whose ratio between forget and retain text decides.
    """

    fraction: float = 0.02
    attention_fraction: float = 0.0
    steps: int = 1
    importance: ImportanceName = "abs"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, share in (("fraction", self.fraction), ("attention_fraction", self.attention_fraction)):
            if not 0 <= share * max(self.steps, 1) <= 1:
                raise CalibrationError(
                    f"got `{option}` {share} in each of {self.steps} step(s), wanted a share from 0 to 1 of all neurons"
                )
        if not self.fraction and not self.attention_fraction:
            raise CalibrationError("got `fraction` 0 and `attention_fraction` 0, wanted at least one above 0")
        if self.steps < 1:
            raise CalibrationError(f"got `steps` {self.steps}, wanted at least 1")
