"""Options of a pooled discriminant's calibration."""

from dataclasses import dataclass
from typing import ClassVar

from guards.calibration.options import DetectorOptions, PlacementName, option

QUESTION_FRAME = "Q: {text}\nA:"
"""The third frame that is fitted where none is named, after the model's chat template and none."""


@dataclass(frozen=True, kw_only=True)
class PooledOptions(DetectorOptions):
    """Key Space Detection on the mean key vector.

    No frames given means several: the model's chat template, none, and QUESTION_FRAME, since what several frames have
    in common is the skill.
    """

    usual_frames: ClassVar[str] = "chat where the model has a chat template, bare, and 'Q: {text}\\nA:'"

    recall: float = option(0.98, "share of the skill to catch")
    max_false_abstention: float = option(0.005, "share of other prompts that may be refused; wins over `recall`")
    placement: PlacementName = option("middle", DetectorOptions.__dataclass_fields__["placement"].metadata["help"])
