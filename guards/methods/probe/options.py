"""Options of the calibration of probes."""

from dataclasses import dataclass
from typing import Literal

from guards.calibration.options import option
from guards.core.verdict import Scope
from guards.errors import CalibrationError
from guards.methods.spans.options import SITE_HELP, SiteName, SpanOptions


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(SpanOptions):
    """Probes of the residual stream, as in the paper, or of another site."""

    site: SiteName = option("residual", SITE_HELP)
    aggregation: Literal["spans", "last"] = option(
        "spans",
        "what is fitted and judged: windows of text and what accumulates along it, or the last token of a prompt,\n"
        "which says nothing of an answer",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregation == "last" and self.scope is Scope.GENERATION:
            raise CalibrationError(
                "got `scope` generation and `aggregation` last, wanted `aggregation` spans: the last token of a prompt "
                "says nothing of an answer"
            )
        if self.aggregation == "last" and self.answers not in (0, SpanOptions.answers):
            raise CalibrationError(
                f"got `answers` {self.answers} and `aggregation` last, which judges none: leave one of them out"
            )

    @property
    def writes(self) -> bool:
        """Whether the model's answers are asked for."""
        return super().writes and self.aggregation != "last"
