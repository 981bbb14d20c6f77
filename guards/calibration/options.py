"""Options that calibrations share: the one home of each default. Light to import, so that `--help` is instant.

The command line is made from these classes: a field's type says which values it takes, its help text what it does.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from guards.core.verdict import Scope
from guards.errors import CalibrationError

PlacementName = Literal["tight", "middle"]
CANDIDATE_LAYERS = 6
"""Layers that are looked at where none is given."""


def option(default: Any, text: str) -> Any:
    """A field with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every method's calibration takes.

    `frames`: what surrounds each text ("chat", "bare" or a template with {text}); none given means the method's own
    choice. `seed` fixes the splits. `batch_tokens`: padded tokens per forward pass, by default what suits the device;
    more costs memory and on a GPU saves time.
    """

    usual_frames: ClassVar[str] = "chat where the model has a chat template, else bare"
    """The frames where none is given, in words."""
    further_frames: ClassVar[tuple[str, ...]] = ()
    """Frames where none is given, after the model's natural one: "chat" where it has a chat template, else "bare"."""

    @property
    def answer_tokens(self) -> int:
        """How many tokens the model may write behind a prompt: room that a cut text leaves."""
        return 0

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
    """What calibrations of detectors share.

    `recall`: share of further forget prompts that must be caught. Raising it forgets more and costs retain prompts near
    the skill. `max_false_abstention`: share of retain prompts that may be refused; it wins over `recall`.
    `placement`: "tight" takes the smallest tau that reaches `recall`, "middle" one halfway to the largest that keeps
    the cap (`guards.calibration.thresholds.place_tau`). `layer`: None takes what separates best.
    """

    layer: int | None = option(None, "the only layer (default: what separates best)")
    recall: float = option(0.95, "share of the skill to catch")
    max_false_abstention: float = option(0.01, "share of other prompts that may be refused; wins over `recall`")
    placement: PlacementName = option(
        "tight",
        "tau as small as `recall` allows, or midway to what `max_false_abstention` allows, which catches more\n"
        "new wordings and refuses more of what no retain source resembles",
    )
    scope: Scope = option(Scope.BOTH, "judge the prompt, what the model writes, or both")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.recall < 1:
            raise CalibrationError(f"got `recall` {self.recall}, wanted a share above 0 and below 1")
        if not 0 <= self.max_false_abstention < 1:
            raise CalibrationError(
                f"got `max_false_abstention` {self.max_false_abstention}, wanted a share from 0 to below 1"
            )
