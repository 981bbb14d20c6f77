"""What is kept over all tokens of a sequence so far, at the cache slots of these tokens (`slots.py`).

Suffixes: T tokens of a forward pass, S sequences in it, C columns, K numbers of a column's state, N any leading
dimension.

A slot that was never written reads NaN. Nothing here waits for the device: what cannot be followed therefore reads NaN,
in place of an error.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from guards.contract.accumulate import OverTokens, together
from guards.contract.slots import Links
from guards.contract.turns import Stretches, Turns

HUGE = 1e6
"""A value beyond this is as good as not finite: in one sum with others it would cost them their digits."""


class _Group:
    """The columns of one class of strategies, and their states."""

    def __init__(self, columns: Sequence[int], strategies: Sequence[OverTokens], device: torch.device) -> None:
        """`columns`: which of all they are."""
        self.columns = torch.tensor(columns, dtype=torch.int64, device=device)
        self.strategy = together(strategies, device)
        """All of them as one."""
        self.neutral_K = torch.tensor(strategies[0].neutral, dtype=torch.float64, device=device)
        self.kept = self._nothing(1)
        """Float64 [1 + slots, C, K]. Row 0 takes what is not kept and is never read; the row of a slot is one more."""

    def _nothing(self, rows: int) -> Tensor:
        """NaN, of which a number of all columns lies together, as strategies make and join them."""
        return self.neutral_K.new_full((len(self.neutral_K), rows, len(self.columns)), torch.nan).permute(1, 2, 0)

    def reserve(self, rows: int) -> None:
        """Makes room for so many rows."""
        had, self.kept = self.kept, self._nothing(rows)
        self.kept[: len(had)] = had

    def nothing(self, tokens: int) -> Tensor:
        """States of tokens of which none is known, [T, C, K]."""
        return self._nothing(1).expand(tokens, -1, -1)

    def of(self, x_NC: Tensor) -> Tensor:
        """What is known by column, of these columns."""
        return x_NC.index_select(1, self.columns)

    def keep(self, slots_T: Tensor, state_TCK: Tensor, broken_TC: Tensor) -> None:
        """Writes states to rows; of those that are broken a NaN, in the first number."""
        if self.strategy.width:
            self.kept.movedim(-1, 0).index_copy_(1, slots_T, state_TCK.movedim(-1, 0))  # whole rows at once
            self.kept[..., 0][slots_T] = state_TCK[..., 0].masked_fill(self.of(broken_TC), torch.nan)

    def before(self, previous_S: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept at slots, [S, C, K], the neutral state below 0; and where nothing is, bool [S, C]."""
        kept_SCK = self.kept[previous_S.clamp_min(-1) + 1]
        state_SCK = torch.where((previous_S >= 0)[:, None, None], kept_SCK, self.neutral_K)
        return state_SCK, torch.isnan(state_SCK).any(dim=-1)


class RunningStates:
    """States of C columns at cache slots, each column under its own strategy."""

    def __init__(self, strategies: Sequence[OverTokens], device: torch.device) -> None:
        """`strategies`: one per column."""
        self._groups: list[_Group] = []
        order: list[int] = []
        for kind in dict.fromkeys(map(type, strategies)):
            columns = [column for column, each in enumerate(strategies) if type(each) is kind]
            order += columns
            self._groups.append(_Group(columns, [strategies[column] for column in columns], device))
        self._place_C = torch.tensor(order, dtype=torch.int64, device=device).argsort()
        self._rows = 1

    def reserve(self, slots: int) -> None:
        """Makes room for slots 0 to `slots` - 1 at once, all NaN; slots there were keep what they hold.

        Call it before a pass is recorded: what a recorded pass writes to must not move.
        """
        if 1 + slots > self._rows:
            self._rows = 1 + slots
            for each in self._groups:
                each.reserve(self._rows)

    def forget(self) -> None:
        """Every slot reads NaN again. In place: what a recorded pass writes to must not move."""
        for each in self._groups:
            each.kept.fill_(torch.nan)

    def extend(self, values_TC: Tensor, links: Links, turns: Turns) -> Tensor:
        """What every column reads at every token, float32 [T, C].

        A column with a state reads NaN: from a value on that is not finite or beyond HUGE, in that sequence and all
        that go on from it; after a slot that nobody wrote; in a sequence that is not sound; at a token of none.
        A slot that nobody reserved is an IndexError on CPU, unless `links` were looked for, and a failed assertion of
        other devices.
        """
        if links.highest >= self._rows - 1:
            self.reserve(max(links.highest + 1, 2 * self._rows))
        states, broken_TC = self._within(values_TC, links, turns)
        broken_TC = broken_TC | links.alien_T[:, None]
        if not links.fresh:
            before, lost_SC = self._before(states, broken_TC, links)
            broken_TC = broken_TC | lost_SC[links.sequence_T]
            states = [
                each.strategy.join(before_SCK[links.sequence_T], state_TCK)
                for each, before_SCK, state_TCK in zip(self._groups, before, states, strict=True)
            ]
        for each, state_TCK in zip(self._groups, states, strict=True):
            each.keep(links.slots_T, state_TCK, broken_TC)
        return self._read(values_TC, states, broken_TC)

    def nothing(self, values_TC: Tensor) -> Tensor:
        """What columns read in a pass for nobody, which keeps nothing: NaN where they have a state."""
        states = [each.nothing(len(values_TC)) for each in self._groups]
        return self._read(values_TC, states, torch.ones_like(values_TC, dtype=torch.bool))

    def _within(self, values_TC: Tensor, links: Links, turns: Turns) -> tuple[list[Tensor], Tensor]:
        """States over each sequence's tokens of this pass, of each group [T, C, K], and where one was not finite by
        then, bool [T, C].
        """
        finite_TC = values_TC.abs() <= HUGE
        clean_TC = values_TC.masked_fill(~finite_TC, 0)
        if links.single:
            return [each.strategy.lift(each.of(clean_TC), turns) for each in self._groups], ~finite_TC
        stretches = Stretches(turns, links.start_T)
        states = [each.strategy.within(each.of(clean_TC), stretches) for each in self._groups]
        bad_TC = (~finite_TC).long()
        count_TC = bad_TC.cumsum(0)
        return states, count_TC > (count_TC - bad_TC)[links.start_T]

    def _before(self, within: Sequence[Tensor], broken_TC: Tensor, links: Links) -> tuple[list[Tensor], Tensor]:
        """States before each sequence's first new token, of each group [S + 1, C, K], and where there is none, bool
        [S + 1, C].

        A sequence may go on from a row of this pass, `row_S`, whose sequence does so in turn. Each round of the loop
        doubles how many of them a state spans. The last row stands for the token before all sequences.
        """
        previous_S, row_S = pad(links.before_SH[:, -1], (0, 1), value=-1), links.row_S
        sequences = len(row_S)
        states, lost = map(list, zip(*(each.before(previous_S) for each in self._groups), strict=True))
        lost_SC = torch.cat(lost, dim=1).index_select(1, self._place_C)
        if links.alone:
            return states, lost_SC
        here_S, at_S = row_S >= 0, row_S.clamp_min(0)
        here_S, at_S = pad(here_S, (0, 1), value=False), pad(at_S, (0, 1))
        states = [
            torch.where(here_S[:, None, None], within_TCK[at_S], state_SCK)
            for within_TCK, state_SCK in zip(within, states, strict=True)
        ]
        lost_SC = torch.where(here_S[:, None], broken_TC[at_S], lost_SC)
        parent_S = torch.where(here_S, links.sequence_T[at_S], sequences)
        for _ in range(max(0, sequences - 1).bit_length()):
            states = [
                each.strategy.join(state_SCK[parent_S], state_SCK)
                for each, state_SCK in zip(self._groups, states, strict=True)
            ]
            lost_SC = lost_SC | lost_SC[parent_S]
            parent_S = parent_S[parent_S]
        return states, lost_SC | (parent_S < sequences)[:, None]

    def _read(self, values_TC: Tensor, states: Sequence[Tensor], broken_TC: Tensor) -> Tensor:
        read = []
        for each, state_TCK in zip(self._groups, states, strict=True):
            read_TC = each.strategy.read(each.of(values_TC), state_TCK)
            if each.strategy.width:
                read_TC = read_TC.masked_fill(each.of(broken_TC), torch.nan)
            read.append(read_TC)
        return torch.cat(read, dim=1).index_select(1, self._place_C)
