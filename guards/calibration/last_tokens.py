"""The residual stream at prompts' last tokens: what an intervention is chosen by, without writing an answer.

Suffixes: E examples, D the residual stream's width (d_model).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from guards.calibration.activations import Activations, Pass, TokenIds, Tokens
from guards.calibration.corpus import Side
from guards.calibration.sides import Advance
from guards.errors import CalibrationError
from guards.model.sites import Site

MOST_STATES = 96
"""Prompts of each side and share that are looked at, at most."""
NOT_FINITE = "the residual stream is not finite in this dtype on this data"
T = TypeVar("T")


def evenly(members: Sequence[T], most: int = MOST_STATES) -> list[T]:
    """At most so many of them, evenly spaced."""
    few = min(most, len(members))
    return [members[i * len(members) // few] for i in range(few)]


@dataclass(frozen=True)
class LastTokens:
    """Looks at last tokens of a model's prompts."""

    model: Activations
    batch_tokens: int | None
    advance: Advance

    def states(self, layers: tuple[int, ...], examples: Sequence[TokenIds]) -> dict[int, Tensor]:
        """The residual stream at each example's last token, float64 [E, D] by layer, on the host.

        Raises CalibrationError where it is not finite.
        """
        kept = self._states(layers, examples)
        if not _finite(kept.values()):
            raise CalibrationError(NOT_FINITE)
        return kept

    def at_the_end(self, examples: Mapping[Side, Sequence[TokenIds]]) -> dict[Side, Tensor] | None:
        """The last block's states, float64 [E, D] by side; None where they are not finite."""
        end = self.model.identity.layers - 1
        found = {side: self._states((end,), each)[end] for side, each in examples.items()}
        return found if _finite(found.values()) else None

    def _states(self, layers: tuple[int, ...], examples: Sequence[TokenIds]) -> dict[int, Tensor]:
        width = self.model.identity.d_model
        kept = {layer: torch.zeros(len(examples), width, dtype=torch.float64) for layer in layers}

        def consume(layer: int, x_TD: Tensor, example_T: Tensor) -> None:
            kept[layer][example_T.cpu()] = x_TD.double().cpu()

        wanted = Pass(Site.RESIDUAL, layers, Tokens.LAST, batch_tokens=self.batch_tokens)
        self.model.stream(wanted, examples, consume, lambda tokens: self.advance(tokens, "states"))
        return kept


def _finite(states: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(each_ED).all()) for each_ED in states)


def usual_length(x_ED: Tensor) -> float:
    """Root mean square length of states."""
    return float(x_ED.square().sum(1).mean().sqrt())


def share_moved(before_ED: Tensor, after_ED: Tensor) -> float:
    """How far a change moved states: the mean square of that over their variance."""
    variance = float((before_ED - before_ED.mean(0)).square().sum(1).mean())
    return float((after_ED - before_ED).square().sum(1).mean()) / variance
