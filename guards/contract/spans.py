"""Strategies over the tokens of one side of a conversation: how like a skill some stretch of it is.

Suffixes: T tokens of a forward pass, C columns, K numbers of a column's state, N any leading dimension.

A token's value v is 0 at the skill's mean and 1 at the others'; its *evidence* is 1 - v. Tokens of the other side, and
of the template, are passed over. What is kept of a side starts from nothing when it has the word again: what was judged
when it was new is not held against what follows. Until then a sum goes on from message to message, so that a question
cut into several is one.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guards.contract.accumulate import OverTokens, of_numbers, running_max
from guards.contract.turns import Stretches, Turns


def _of_sides(written: bool | Tensor, of_WT: Tensor) -> Tensor:
    """What is known by side, of each column's side [C, T]."""
    return of_WT.index_select(0, torch.as_tensor(written, device=of_WT.device).reshape(-1).long())


@dataclass(frozen=True)
class Rise(OverTokens):
    """1 / (1 + m), with m the largest sum, over a stretch of a turn, of evidence less `kappa` a token.

    1 where nothing speaks for the skill, towards 0 the more does (CUSUM, Page 1954). ``c = max(c + e, 0)`` and
    ``m = max(m, c)``, with e the evidence less kappa, both since the side has the word. Both are linear
    in (m, c, 0) where + is max and * is +, so that a stretch of tokens is a matrix, here of five numbers: m's own m,
    m's c, m's constant, c's own c, c's constant.
    """

    kappa: float
    written: bool

    neutral: ClassVar[tuple[float, ...]] = (0.0, -torch.inf, -torch.inf, 0.0, -torch.inf)

    def lift(self, values_TC: Tensor, turns: Turns) -> Tensor:
        e_TC = 1 - values_TC.double() - self.kappa
        own_TC = (turns.written[:, None] == self.written).expand_as(e_TC)
        counted_TC = own_TC & turns.counted[:, None]
        begins_TC = own_TC & turns.changes[:, None]
        anew_TC = torch.where(counted_TC | begins_TC, 0.0, -torch.inf).double()
        counts_TC = e_TC.masked_fill(~counted_TC, -torch.inf)
        own = (
            torch.zeros_like(e_TC).masked_fill(begins_TC, -torch.inf),
            counts_TC,
            anew_TC,
            torch.where(counted_TC | begins_TC, counts_TC, 0.0),
            anew_TC,
        )
        return of_numbers(*own)

    def within(self, values_TC: Tensor, stretches: Stretches) -> Tensor:
        """Of sums S of evidence less kappa, c is S less the least S since the turn began, and m the largest c.

        Since m >= c >= 0 at all times, an empty stretch may be taken to start from 0 too.
        """
        counted_CT = _of_sides(self.written, stretches.counted)
        word_CT, changed_CT = (_of_sides(self.written, each) for each in (stretches.begins[1], stretches.begun[1]))
        e_CT = torch.where(counted_CT, (1 - values_TC.double() - self.kappa).T, 0.0)
        sum_CT = e_CT.cumsum(dim=-1)
        sum_CT = sum_CT - (sum_CT - e_CT).index_select(-1, stretches.start_T)
        first_CT = sum_CT.masked_fill(changed_CT, -torch.inf)
        start_CT = stretches.start_T.expand_as(word_CT)
        less_CT, most_of_c_CT = running_max(torch.cat([-sum_CT, first_CT]), torch.cat([word_CT, start_CT])).chunk(2)
        c_of_0_CT = sum_CT + torch.where(changed_CT, less_CT, less_CT.clamp_min(0))
        own = (
            torch.zeros_like(sum_CT).masked_fill(changed_CT, -torch.inf),
            most_of_c_CT.clamp_min(0).masked_fill(changed_CT, -torch.inf),
            running_max(c_of_0_CT, word_CT),
            first_CT,
            c_of_0_CT,
        )
        return of_numbers(*(each.T.contiguous() for each in own))

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
        return of_numbers(*joined)

    def read(self, values_TC: Tensor, state_TCK: Tensor) -> Tensor:
        most_TC, most_of_c_TC, most_of_0_TC, *_ = state_TCK.unbind(-1)
        m_TC = torch.maximum(torch.maximum(most_TC, most_of_c_TC), most_of_0_TC)  # from m = c = 0
        return (1 / (1 + m_TC)).float()


@dataclass(frozen=True)
class MessageMean(OverTokens):
    """The mean value of the newest message that was asked, or of the answer, drawn towards 1 as by `weight` tokens of
    no evidence.

    For short texts, in which no sum becomes large. An answer may open parts of its own, such as thoughts, and is one.
    The state: whether what was before counts, evidence, tokens.
    """

    weight: float
    written: bool

    neutral: ClassVar[tuple[float, ...]] = (1.0, 0.0, 0.0)

    def lift(self, values_TC: Tensor, turns: Turns) -> Tensor:
        own_TC = (turns.written[:, None] == self.written).expand_as(values_TC)
        counted_TC = (own_TC & turns.counted[:, None]).double()
        begins_T2 = torch.stack([turns.opens, turns.changes], dim=-1)
        begins_TC = begins_T2.index_select(1, torch.as_tensor(self.written, device=own_TC.device).reshape(-1).long())
        opens_TC = (own_TC & begins_TC).double()
        return of_numbers(1 - opens_TC, counted_TC * (1 - values_TC.double()), counted_TC)

    def within(self, values_TC: Tensor, stretches: Stretches) -> Tensor:
        """Sums less what they were when the message began."""
        counted_CT = _of_sides(self.written, stretches.counted).double()
        begin_CT, opened_CT = (_of_sides(self.written, each) for each in stretches.newest)
        of_CT = torch.stack([counted_CT * (1 - values_TC.double().T), counted_CT])
        sum_CT = of_CT.cumsum(dim=-1)
        evidence_CT, tokens_CT = sum_CT - (sum_CT - of_CT).gather(-1, begin_CT.expand_as(of_CT))
        return of_numbers(*(each.T.contiguous() for each in ((~opened_CT).double(), evidence_CT, tokens_CT)))

    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        kept, evidence, tokens = before_NCK.unbind(-1)
        stays, more_evidence, more_tokens = after_NCK.unbind(-1)
        return of_numbers(kept * stays, evidence * stays + more_evidence, tokens * stays + more_tokens)

    def read(self, values_TC: Tensor, state_TCK: Tensor) -> Tensor:
        return (1 - state_TCK[..., 1] / (state_TCK[..., 2] + self.weight)).float()
