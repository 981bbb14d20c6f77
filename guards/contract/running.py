"""What is kept over all tokens of a sequence so far, at the cache slots of these tokens (`slots.py`).

Suffixes: T tokens of a forward pass, S sequences in it, C columns, K numbers of a column's state, W numbers of all
columns' states, N any leading dimension.

A slot that was never written reads NaN. Nothing here waits for the device: what cannot be followed therefore reads NaN,
in place of an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from guards.contract.accumulate import OverTokens, scan
from guards.contract.slots import Links
from guards.contract.turns import Turns

HUGE = 1e6
"""A value beyond this is as good as not finite: in one sum with others it would cost them their digits."""


class _Member(NamedTuple):
    """A strategy, which of all columns are under it, and which of its group's."""

    strategy: OverTokens
    columns: Tensor
    part: slice


@dataclass(frozen=True)
class _Group:
    """The columns of one class of strategies, whose states are joined alike, and which numbers of W are theirs."""

    members: tuple[_Member, ...]
    numbers: slice

    @property
    def strategy(self) -> OverTokens:
        """Any of them."""
        return self.members[0].strategy

    def of(self, state_NW: Tensor) -> Tensor:
        """This group's states, a view [N, C, K]."""
        return state_NW[:, self.numbers].view(len(state_NW), self.members[-1].part.stop, self.strategy.width)

    def lift(self, values_TC: Tensor, turns: Turns) -> Tensor:
        """States of single tokens, float64 [T, C, K]. `values_TC`: of all columns."""
        return torch.cat([each.strategy.lift(values_TC[:, each.columns], turns) for each in self.members], dim=1)


class RunningStates:
    """States of C columns at cache slots, each column under its own strategy."""

    def __init__(self, strategies: Sequence[OverTokens], device: torch.device) -> None:
        """`strategies`: one per column."""
        self._groups: list[_Group] = []
        neutral: list[float] = []
        column_of: list[int] = []
        order: list[int] = []
        for kind in dict.fromkeys(map(type, strategies)):
            members: list[_Member] = []
            begin = len(neutral)
            for strategy in dict.fromkeys(each for each in strategies if type(each) is kind):
                columns = [column for column, each in enumerate(strategies) if each == strategy]
                start = members[-1].part.stop if members else 0
                held = torch.tensor(columns, dtype=torch.int64, device=device)
                members.append(_Member(strategy, held, slice(start, start + len(columns))))
                neutral += strategy.neutral * len(columns)
                column_of += [column for column in columns for _ in range(strategy.width)]
                order += columns
            self._groups.append(_Group(tuple(members), slice(begin, len(neutral))))
        self._neutral_W = torch.tensor(neutral, dtype=torch.float64, device=device)
        self._column_W = torch.tensor(column_of, dtype=torch.int64, device=device)
        self._place_C = torch.tensor(order, dtype=torch.int64, device=device).argsort()
        self._kept = self._neutral_W.new_full((1, len(neutral)), torch.nan)
        """Float64 [1 + slots, W]. Row 0 takes what is not kept and is never read; the row of a slot is one more."""

    def reserve(self, slots: int) -> None:
        """Makes room for slots 0 to `slots` - 1 at once, all NaN; slots there were keep what they hold.

        Call it before a pass is recorded: what a recorded pass writes to must not move.
        """
        if 1 + slots > len(self._kept):
            more = self._kept.new_full((1 + slots - len(self._kept), self._kept.shape[1]), torch.nan)
            self._kept = torch.cat([self._kept, more])

    def forget(self) -> None:
        """Every slot reads NaN again. In place: what a recorded pass writes to must not move."""
        self._kept.fill_(torch.nan)

    def extend(self, values_TC: Tensor, links: Links, turns: Turns) -> Tensor:
        """What every column reads at every token, float32 [T, C].

        A column with a state reads NaN: from a value on that is not finite or beyond HUGE, in that sequence and all
        that go on from it; after a slot that nobody wrote; in a sequence that is not sound; at a token of none.
        A slot that nobody reserved is an IndexError on CPU, unless `links` were looked for, and a failed assertion of
        other devices.
        """
        if links.highest >= len(self._kept) - 1:
            self.reserve(max(links.highest + 1, 2 * len(self._kept)))
        within_TW, broken_TC = self._within(values_TC, links, turns)
        broken_TC = broken_TC | links.alien_T[:, None]
        before_SW, lost_SC = self._before(within_TW, broken_TC, links)
        broken_TC = broken_TC | lost_SC[links.sequence_T]
        joined_TW = self._join(before_SW[links.sequence_T], within_TW)
        state_TW = joined_TW.masked_fill(broken_TC[:, self._column_W], torch.nan)
        self._kept[links.slots_T] = state_TW[links.order_T]
        return self._read(values_TC, state_TW, broken_TC)

    def nothing(self, values_TC: Tensor) -> Tensor:
        """What columns read in a pass for nobody, which keeps nothing: NaN where they have a state."""
        nothing_TW = self._neutral_W.new_full((len(values_TC), len(self._neutral_W)), torch.nan)
        return self._read(values_TC, nothing_TW, torch.ones_like(values_TC, dtype=torch.bool))

    def _within(self, values_TC: Tensor, links: Links, turns: Turns) -> tuple[Tensor, Tensor]:
        """States over each sequence's tokens of this pass [T, W], and where one was not finite by then, bool [T, C]."""
        finite_TC = values_TC.abs() <= HUGE
        clean_TC, bad_TC = torch.where(finite_TC, values_TC, 0.0), (~finite_TC).long()
        states = []
        for each in self._groups:
            state_TCK = each.lift(clean_TC, turns)
            states.append((state_TCK if links.single else scan(each.strategy, state_TCK, links.start_T)).flatten(1))
        count_TC = bad_TC.cumsum(0)
        return torch.cat(states, dim=1), count_TC > (count_TC - bad_TC)[links.start_T]

    def _before(self, within_TW: Tensor, broken_TC: Tensor, links: Links) -> tuple[Tensor, Tensor]:
        """States before each sequence's first new token [S + 1, W], and where there is none, bool [S + 1, C].

        A sequence may go on from a row of this pass, `row_S`, whose sequence does so in turn. Each round of the loop
        doubles how many of them a state spans. The last row stands for the token before all sequences.
        """
        previous_S, row_S = links.before_SH[:, -1], links.row_S
        sequences = len(previous_S)
        kept_SW = torch.where((previous_S >= 0)[:, None], self._kept[previous_S.clamp_min(-1) + 1], self._neutral_W)
        holes_SC = torch.zeros(sequences, broken_TC.shape[1], device=kept_SW.device)
        holes_SC.index_add_(1, self._column_W, torch.isnan(kept_SW).float())
        here_S, at_S = row_S >= 0, row_S.clamp_min(0)
        before_SW = torch.cat([torch.where(here_S[:, None], within_TW[at_S], kept_SW), self._neutral_W[None]])
        lost_SC = pad(torch.where(here_S[:, None], broken_TC[at_S], holes_SC > 0), (0, 0, 0, 1), value=False)
        parent_S = pad(torch.where(here_S, links.sequence_T[at_S], sequences), (0, 1), value=sequences)
        for _ in range(0 if links.alone else max(0, sequences - 1).bit_length()):
            before_SW = self._join(before_SW[parent_S], before_SW)
            lost_SC = lost_SC | lost_SC[parent_S]
            parent_S = parent_S[parent_S]
        return before_SW, lost_SC | (parent_S < sequences)[:, None]

    def _join(self, before_NW: Tensor, after_NW: Tensor) -> Tensor:
        joined = [each.strategy.join(each.of(before_NW), each.of(after_NW)).flatten(1) for each in self._groups]
        return torch.cat(joined, dim=1)

    def _read(self, values_TC: Tensor, state_TW: Tensor, broken_TC: Tensor) -> Tensor:
        read = []
        for group in self._groups:
            state_TCK = group.of(state_TW)
            for each in group.members:
                read_TC = each.strategy.read(values_TC[:, each.columns], state_TCK[:, each.part])
                if each.strategy.width:
                    read_TC = read_TC.masked_fill(broken_TC[:, each.columns], torch.nan)
                read.append(read_TC)
        return torch.cat(read, dim=1)[:, self._place_C]
