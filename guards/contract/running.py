"""What is kept over all tokens of a sequence so far, at the cache slots of these tokens (`slots.py`).

Suffixes: T tokens of a forward pass, S sequences in it, C columns, K numbers of a column's state, W numbers of all
columns' states, N any leading dimension.

A slot that was never written reads NaN. Nothing here waits for the device: what cannot be followed therefore reads NaN,
in place of an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from guards.contract.accumulate import OverTokens, together
from guards.contract.slots import Links
from guards.contract.turns import Stretches, Turns

HUGE = 1e6
"""A value beyond this is as good as not finite: in one sum with others it would cost them their digits."""


@dataclass(frozen=True, eq=False)
class _Group:
    """The columns of one class of strategies: which of all they are, int64 [C], their strategies as one, and which
    numbers of W are theirs.
    """

    strategy: OverTokens
    columns: Tensor
    numbers: slice

    def of(self, state_NW: Tensor) -> Tensor:
        """This group's states, a view [N, C, K]."""
        return state_NW[:, self.numbers].view(len(state_NW), len(self.columns), self.strategy.width)


class RunningStates:
    """States of C columns at cache slots, each column under its own strategy."""

    def __init__(self, strategies: Sequence[OverTokens], device: torch.device) -> None:
        """`strategies`: one per column."""
        self._groups: list[_Group] = []
        neutral: list[float] = []
        column_of: list[int] = []
        order: list[int] = []
        for kind in dict.fromkeys(map(type, strategies)):
            columns = [column for column, each in enumerate(strategies) if type(each) is kind]
            of_kind, begin = [strategies[column] for column in columns], len(neutral)
            neutral += of_kind[0].neutral * len(columns)
            column_of += [column for column in columns for _ in of_kind[0].neutral]
            order += columns
            held = torch.tensor(columns, dtype=torch.int64, device=device)
            self._groups.append(_Group(together(of_kind, device), held, slice(begin, len(neutral))))
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
        clean_TC, bad_TC = values_TC.masked_fill(~finite_TC, 0), (~finite_TC).long()
        stretches, states = Stretches(turns, links.start_T), []
        for each in self._groups:
            own_TC = clean_TC.index_select(1, each.columns)
            alone = each.strategy.lift(own_TC, turns) if links.single else each.strategy.within(own_TC, stretches)
            states.append(alone.flatten(1))
        if links.single:
            return torch.cat(states, dim=1), ~finite_TC
        count_TC = bad_TC.cumsum(0)
        return torch.cat(states, dim=1), count_TC > (count_TC - bad_TC)[links.start_T]

    def _before(self, within_TW: Tensor, broken_TC: Tensor, links: Links) -> tuple[Tensor, Tensor]:
        """States before each sequence's first new token [S + 1, W], and where there is none, bool [S + 1, C].

        A sequence may go on from a row of this pass, `row_S`, whose sequence does so in turn. Each round of the loop
        doubles how many of them a state spans. The last row stands for the token before all sequences.
        """
        previous_S, row_S = pad(links.before_SH[:, -1], (0, 1), value=-1), links.row_S
        sequences = len(row_S)
        kept_SW = torch.where((previous_S >= 0)[:, None], self._kept[previous_S.clamp_min(-1) + 1], self._neutral_W)
        holes_SC = torch.zeros(sequences + 1, broken_TC.shape[1], device=kept_SW.device)
        lost_SC = holes_SC.index_add_(1, self._column_W, torch.isnan(kept_SW).float()) > 0
        if links.alone:
            return kept_SW, lost_SC
        here_S, at_S = row_S >= 0, row_S.clamp_min(0)
        here_S1, at_S = pad(here_S, (0, 1), value=False)[:, None], pad(at_S, (0, 1))
        before_SW = torch.where(here_S1, within_TW[at_S], kept_SW)
        lost_SC = torch.where(here_S1, broken_TC[at_S], lost_SC)
        parent_S = torch.where(here_S1[:, 0], links.sequence_T[at_S], sequences)
        for _ in range(max(0, sequences - 1).bit_length()):
            before_SW = self._join(before_SW[parent_S], before_SW)
            lost_SC = lost_SC | lost_SC[parent_S]
            parent_S = parent_S[parent_S]
        return before_SW, lost_SC | (parent_S < sequences)[:, None]

    def _join(self, before_NW: Tensor, after_NW: Tensor) -> Tensor:
        joined = [each.strategy.join(each.of(before_NW), each.of(after_NW)).flatten(1) for each in self._groups]
        return torch.cat(joined, dim=1)

    def _read(self, values_TC: Tensor, state_TW: Tensor, broken_TC: Tensor) -> Tensor:
        read = []
        for each in self._groups:
            read_TC = each.strategy.read(values_TC.index_select(1, each.columns), each.of(state_TW))
            if each.strategy.width:
                read_TC = read_TC.masked_fill(broken_TC.index_select(1, each.columns), torch.nan)
            read.append(read_TC)
        return torch.cat(read, dim=1).index_select(1, self._place_C)
