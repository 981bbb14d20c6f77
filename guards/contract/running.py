"""Means over all tokens of a sequence so far, when its tokens come in pieces and others' between them.

Suffixes: T tokens of a forward pass, S sequences in it, C columns.

A sum lies at the cache slot of its token, as that token's keys and values do. A sequence goes on from the slot of the
token before its first new one, whoever computes that token: a pass before, another request with the same prefix, or,
since vLLM shares blocks that it has only just scheduled, another sequence of this very pass. A slot that was never
written reads NaN; one that was given to another sequence holds that one's sum, so an engine must hand over slots whose
token is computed, at the latest, in this pass.
"""

import torch
from torch import Tensor

HUGE = 1e6
"""A value beyond this is as good as not finite: in one sum with others it would cost them their digits."""
_POSITIONS = 1 << 32
"""More than any sequence has: slot and position as one number."""


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
        within_TC = _within(values_TC, starts_S, sequence_T)
        come_SC = torch.where((previous_S >= 0)[:, None], self._sums[previous_S.clamp_min(0)], 0.0)
        row_S = _written_now(slots_T, positions_T, previous_S, positions_T[starts_S] - 1)
        for _ in range(int((row_S >= 0).sum())):  # a sequence may go on from one that itself goes on from another
            parent_SC = (within_TC + come_SC[sequence_T])[row_S.clamp_min(0)]
            come_SC = torch.where((row_S >= 0)[:, None], parent_SC, come_SC)
        total_TC = within_TC + come_SC[sequence_T]
        kept_T = slots_T >= 0
        self._sums[slots_T[kept_T]] = total_TC[kept_T]
        return (total_TC / (positions_T + 1)[:, None]).float()


def _within(values_TC: Tensor, starts_S: Tensor, sequence_T: Tensor) -> Tensor:
    """Sums over each sequence's tokens of this pass, float64 [T, C]; NaN from a value on that is not finite."""
    finite_TC = values_TC.abs() <= HUGE
    clean_TC, broken_TC = torch.where(finite_TC, values_TC, 0.0).double(), (~finite_TC).long()
    summed_TC, count_TC = clean_TC.cumsum(0), broken_TC.cumsum(0)
    before_SC, count_before_SC = (summed_TC - clean_TC)[starts_S], (count_TC - broken_TC)[starts_S]
    within_TC = summed_TC - before_SC[sequence_T]
    return torch.where(count_TC > count_before_SC[sequence_T], torch.nan, within_TC)


def _written_now(slots_T: Tensor, positions_T: Tensor, previous_S: Tensor, before_S: Tensor) -> Tensor:
    """The row of this pass that computes each sequence's token before its first new one, -1 where none does.

    By slot and position: a window's ring of slots is written at one slot for several positions.
    """
    key_T, order_T = torch.sort(slots_T * _POSITIONS + positions_T)
    wanted_S = previous_S * _POSITIONS + before_S
    at_S = torch.searchsorted(key_T, wanted_S).clamp_max(len(key_T) - 1)
    return torch.where((previous_S >= 0) & (key_T[at_S] == wanted_S), order_T[at_S], -1)
