"""Examples that were not fitted, as directions see them.

Suffixes: T tokens of an example, N windows, C what is read of each token, J judgements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guards.calibration.accumulated import read_texts
from guards.calibration.corpus import Side
from guards.contract.turns import Turns
from guards.methods.spans.choice import gathered, margins, needed
from guards.methods.spans.examples import Example
from guards.methods.spans.guard import Judgement
from guards.methods.spans.passes import WindowsOf


@dataclass(frozen=True)
class Held:
    """Examples, whose words their tokens are, and their values: float32 [T, C], or [T] under one direction."""

    examples: Sequence[Example]
    turns: Sequence[Turns]
    values: Sequence[Tensor]

    def of(self, holds: Callable[[Example], bool]) -> "Held":
        """Some of them."""
        kept = [index for index, each in enumerate(self.examples) if holds(each)]
        return Held(
            [self.examples[index] for index in kept],
            [self.turns[index] for index in kept],
            [self.values[index] for index in kept],
        )

    def under(self, share_C: Tensor) -> "Held":
        """The same under one direction, of which each value that was read makes a share, float32 [C]."""
        return replace(self, values=[value_TC @ share_C for value_TC in self.values])

    def windows(self, of: WindowsOf, side: Side) -> Tensor:
        """The mean values of one side's windows, float32 [N, C]."""
        found = []
        for example, turns, value_TC in zip(self.examples, self.turns, self.values, strict=True):
            if example.side == side:
                window_T = of(turns, example.own)
                inside_T = window_T >= 0
                size_N = torch.bincount(window_T[inside_T])
                sum_NC = value_TC.new_zeros(len(size_N), value_TC.shape[1])
                found.append(sum_NC.index_add_(0, window_T[inside_T], value_TC[inside_T]) / size_N[:, None])
        return torch.cat(found)

    def margins(self, judged: Sequence[Judgement]) -> list[Tensor]:
        """Evidence at every token over what is needed to fire, float32 [T]."""
        evidence = gathered(self.values, self.turns, [each.over_tokens for each in judged])
        return [margins(each_TJ, [needed(each) for each in judged]) for each_TJ in evidence]

    def ratios(self, judged: Sequence[Judgement]) -> list[float]:
        """Score over tau at the last token, of the judgement where that is smallest."""
        tau_J = torch.tensor([each.tau for each in judged], dtype=torch.float64)
        read = read_texts(self.values, self.turns, [each.over_tokens for each in judged])
        return [float((each_TJ[-1].double() / tau_J).amin()) for each_TJ in read]
