"""Options of the calibration of a guard over spans."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from guards.calibration.material import Which
from guards.calibration.options import DetectorOptions, PlacementName, option
from guards.core.verdict import Scope
from guards.errors import CalibrationError

SiteName = Literal["key", "residual", "attention"]

SITE_HELP = (
    "what is read: key vectors, the residual stream after a block, which mixtures of experts have too, or what\n"
    "attention puts out"
)
QUESTION_FRAME = "Q: {text}\nA:"
"""The third frame that is fitted where none is named, after the model's chat template and none."""


@dataclass(frozen=True, kw_only=True)
class SpanOptions(DetectorOptions):
    """Key Space Detection over spans, the default variant.

    No frames given means several: the model's chat template, none, and QUESTION_FRAME, since what several frames have
    in common is the skill.
    """

    usual_frames: ClassVar[str] = "chat where the model has a chat template, bare, and 'Q: {text}\\nA:'"
    further_frames: ClassVar[tuple[str, ...]] = ("bare", QUESTION_FRAME)

    site: SiteName = option("key", SITE_HELP)
    recall: float = option(0.98, "share of the skill to catch")
    max_false_abstention: float = option(
        0.005,
        "share of what is retained that may be refused when it is asked, and as much again while it is answered; no\n"
        "retain source, surrounding or length of text may contradict it; wins over `recall`",
    )
    placement: PlacementName = option("middle", DetectorOptions.__dataclass_fields__["placement"].metadata["help"])
    material: Which = option(
        "all",
        'shipped texts that are retained too: look-alikes, everyday requests, long texts, chats; "english" for a\n'
        "guard of another language",
    )
    answers: int = option(
        48, "tokens of the model's own answers, which are judged while they are written; 0: only prompts are judged"
    )
    answers_file: Path | None = option(
        None,
        "file that keeps these answers, so that a stopped calibration goes on and another one writes none twice",
    )
    longest: int = option(2048, "tokens of the longest texts that are tried, or what the model takes if that is less")

    @property
    def answer_tokens(self) -> int:
        return self.answers

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answers < 0:
            raise CalibrationError(f"got `answers` {self.answers}, wanted 0 or more tokens")
        if self.answers_file is not None and not self.writes:
            raise CalibrationError(
                f"got `answers_file` {self.answers_file}, and options with which the model writes no answers "
                "(`answers` 0, `scope` prompt or `aggregation` last): leave one of them out"
            )
        if self.longest < 1:
            raise CalibrationError(f"got `longest` {self.longest}, wanted at least 1")

    @property
    def writes(self) -> bool:
        """Whether the model's answers are asked for."""
        return self.answers > 0 and self.scope is not Scope.PROMPT
