"""Strategies over the tokens of one side of a conversation: how like a skill some stretch of it is.

Suffixes: T tokens of a forward pass, C columns, K numbers of a column's state, N any leading dimension.

A token's value v is 0 at the skill's mean and 1 at the others'; its *evidence* is 1 - v. Tokens of the other side, and
of the template, are passed over. A message starts from nothing, and so does all that is kept of a side when it has the
word again: what was judged when it was new is not held against what follows.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guards.contract.accumulate import OverTokens
from guards.contract.turns import Turns


@dataclass(frozen=True)
class Rise(OverTokens):
    """1 / (1 + m), with m the largest sum, over a stretch of a message, of evidence less `kappa` a token.

    1 where nothing speaks for the skill, towards 0 the more does (CUSUM, Page 1954). ``c = max(c + e, 0)`` and
    ``m = max(m, c)``, with e the evidence less kappa; m is of all messages since the side had the word. Both are linear
    in (m, c, 0) where + is max and * is +, so that a stretch of tokens is a matrix, here of five numbers: m's own m,
    m's c, m's constant, c's own c, c's constant.
    """

    kappa: float
    written: bool

    neutral: ClassVar[tuple[float, ...]] = (0.0, -torch.inf, -torch.inf, 0.0, -torch.inf)

    def lift(self, values_TC: Tensor, turns: Turns) -> Tensor:
        e_TC = 1 - values_TC.double() - self.kappa
        own_T1 = (turns.written == self.written)[:, None]
        counted_TC = (own_T1 & turns.counted[:, None]).expand_as(e_TC)
        opens_TC = (own_T1 & turns.opens[:, None]).expand_as(e_TC)
        changes_TC = (own_T1 & turns.changes[:, None]).expand_as(e_TC)
        nothing = e_TC.new_full((), -torch.inf)
        zero = e_TC.new_zeros(())
        anew_TC = torch.where(counted_TC | opens_TC, zero, nothing)
        own = (
            torch.where(changes_TC, nothing, zero),
            torch.where(counted_TC, e_TC, nothing),
            anew_TC,
            torch.where(counted_TC, e_TC, torch.where(opens_TC, nothing, zero)),
            anew_TC,
        )
        return torch.stack(own, dim=-1)

    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        most, most_of_c, most_of_0, c, c_of_0 = before_NCK.unbind(-1)
        later, later_of_c, later_of_0, d, d_of_0 = after_NCK.unbind(-1)
        joined = (
            most + later,
            torch.maximum(most_of_c + later, c + later_of_c),
            torch.maximum(torch.maximum(most_of_0 + later, c_of_0 + later_of_c), later_of_0),
            c + d,
            torch.maximum(c_of_0 + d, d_of_0),
        )
        return torch.stack(joined, dim=-1)

    def read(self, values_TC: Tensor, state_TCK: Tensor) -> Tensor:
        return (1 / (1 + state_TCK[..., :3].amax(dim=-1))).float()  # from m = c = 0


@dataclass(frozen=True)
class MessageMean(OverTokens):
    """The mean value of the newest message, drawn towards 1 as by `weight` tokens of no evidence.

    For short texts, in which no sum becomes large. The state: whether what was before counts, evidence, tokens.
    """

    weight: float
    written: bool

    neutral: ClassVar[tuple[float, ...]] = (1.0, 0.0, 0.0)

    def lift(self, values_TC: Tensor, turns: Turns) -> Tensor:
        own_T1 = (turns.written == self.written)[:, None]
        counted_TC = (own_T1 & turns.counted[:, None]).expand_as(values_TC).double()
        opens_TC = (own_T1 & turns.opens[:, None]).expand_as(values_TC).double()
        return torch.stack([1 - opens_TC, counted_TC * (1 - values_TC.double()), counted_TC], dim=-1)

    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        kept_NC1 = after_NCK[..., :1]
        return torch.cat([before_NCK[..., :1] * kept_NC1, before_NCK[..., 1:] * kept_NC1 + after_NCK[..., 1:]], dim=-1)

    def read(self, values_TC: Tensor, state_TCK: Tensor) -> Tensor:
        return (1 - state_TCK[..., 1] / (state_TCK[..., 2] + self.weight)).float()
