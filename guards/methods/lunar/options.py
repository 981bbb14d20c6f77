"""Options of LUNAR's calibration."""

from dataclasses import dataclass

from guards.calibration.material import Reference, Which
from guards.calibration.options import CANDIDATE_LAYERS, CommonOptions, option
from guards.errors import CalibrationError

CHANGE_HELP = (
    "artifact of the variant redirect: abstain takes its w for the detector, trained its layer and where it leads;\n"
    "give the same examples and seed"
)


@dataclass(frozen=True, kw_only=True)
class LunarOptions(CommonOptions):
    """LUNAR.

    `reference`: shipped prompts to whose place in the residual stream the skill's are moved: about things that do not
    exist, which a model can at best say that it does not know, or such as a model is trained to refuse. `strength`
    multiplies the way there (the paper's 2). `ridge`: what keeps the solve from fitting noise, as a share of the mean
    square of a key vector's entries; None takes what serves held-out prompts best.

    Without a `layer` as many as `candidates` are tried: under each one's change the model answers `asked` prompts of
    each side, greedily, in at most `asked_tokens` tokens. More of each choose better and take longer.
    """

    reference: Reference = option(
        "unanswerable", "where the skill's prompts are moved to: questions about made-up things, or harmful requests"
    )
    strength: float = option(2.0, "times the way to the reference prompts; more redirects more, and breaks more")
    layer: int | None = option(
        None, "the layer that is changed (default: that under which held-out prompts are answered best)"
    )
    candidates: int = option(
        CANDIDATE_LAYERS, "layers that are tried, evenly spaced from a fifth of the model to four fifths"
    )
    asked: int = option(12, "held-out prompts of each side that are answered under each, by which layers are compared")
    asked_tokens: int = option(24, "tokens of each of those answers")
    ridge: float | None = option(None, "of the solve (default: what serves held-out prompts best)")
    material: Which = option("all", 'shipped texts that are retained too; "english" for a guard of another language')

    @property
    def answer_tokens(self) -> int:
        return self.asked_tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength <= 100:
            raise CalibrationError(f"got `strength` {self.strength}, wanted a number above 0 and up to 100")
        if self.ridge is not None and not 0 < self.ridge <= 1e3:
            raise CalibrationError(f"got `ridge` {self.ridge}, wanted a number above 0 and up to 1000")
        for name, least in (("candidates", 1), ("asked", 2), ("asked_tokens", 1)):
            if getattr(self, name) < least:
                raise CalibrationError(f"got `{name}` {getattr(self, name)}, wanted at least {least}")
        if self.layer is not None and self.candidates != CANDIDATE_LAYERS:
            raise CalibrationError(
                f"got `layer` {self.layer} and `candidates` {self.candidates}, wanted one of the two: a layer that is "
                "named is the only one that is tried"
            )
