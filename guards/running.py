"""Means over all tokens of a sequence so far, when its tokens come in pieces and others' between them.

Suffixes: T tokens of a forward pass, S sequences in it, C columns.

A sum lies at the cache slot of its token, as that token's keys and values do. A sequence goes on from the slot of the
token before its first new one, whoever wrote it: the pass before, or, for a prefix that is cached, another request with
the same tokens. What nobody wrote reads NaN.
"""

import torch
from torch import Tensor

HUGE = 1e9
"""A value beyond this is as good as not finite: in one sum with others it would cost them their digits."""


class RunningMeans:
    """Sums of C columns at cache slots, float64."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self._sums = torch.full((0, columns), torch.nan, dtype=torch.float64, device=device)

    def _reserve(self, slots: int) -> None:
        if slots > len(self._sums):
            more = self._sums.new_full(
                (max(slots, 2 * len(self._sums)) - len(self._sums), self._sums.shape[1]), torch.nan
            )
            self._sums = torch.cat([self._sums, more])

    def extend(
        self, values_TC: Tensor, positions_T: Tensor, starts_S: Tensor, slots_T: Tensor, previous_S: Tensor
    ) -> Tensor:
        """Means up to and with every token, float32 [T, C]; NaN from a value on that is not finite.

        `starts_S`: row of each sequence's first new token, ascending, the first 0. `slots_T`: where each token's sum
        is kept; below 0 it is not. `previous_S`: slot of the token before each sequence's first new one, -1 for none.
        """
        self._reserve(1 + max(0, int(torch.cat([slots_T, previous_S]).max())))
        first_T = torch.zeros(len(values_TC), dtype=torch.int64, device=values_TC.device)
        first_T[starts_S] = 1
        sequence_T = first_T.cumsum(0) - 1
        finite_TC = values_TC.abs() <= HUGE
        clean_TC = torch.where(finite_TC, values_TC, 0.0).double()
        summed_TC, broken_TC = clean_TC.cumsum(0), (~finite_TC).long().cumsum(0)
        come_SC = torch.where((previous_S >= 0)[:, None], self._sums[previous_S.clamp_min(0)], 0.0)
        before_SC = (summed_TC - clean_TC)[starts_S]
        broken_before_SC = (broken_TC - (~finite_TC).long())[starts_S]
        total_TC = summed_TC + (come_SC - before_SC)[sequence_T]
        total_TC = torch.where(broken_TC > broken_before_SC[sequence_T], torch.nan, total_TC)
        kept_T = slots_T >= 0
        self._sums[slots_T[kept_T]] = total_TC[kept_T]
        return (total_TC / (positions_T + 1)[:, None]).float()
