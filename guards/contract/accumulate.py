"""What is kept over all tokens of a sequence so far, when its tokens come in pieces and others' between them.

Suffixes: T tokens of a forward pass, S sequences in it, C columns, K numbers of a column's state, W numbers of all
columns' states, N any leading dimension.

A state lies at the cache slot of its token, as that token's keys and values do. A sequence goes on from the slot of the
token before its first new one, whoever computes that token: a pass before, another request with the same prefix, or,
since vLLM shares blocks that it has only just scheduled, another sequence of this very pass. A slot that was never
written reads NaN. One that was given to another sequence holds that one's state, so an engine must hand over slots
whose token is computed, at the latest, in this pass.

Nothing here waits for the device: no branch, no size and no error hangs on a tensor's values. What cannot be followed
therefore reads NaN, in place of an error.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

HUGE = 1e6
"""A value beyond this is as good as not finite: in one sum with others it would cost them their digits."""
_POSITIONS = 1 << 32
"""More than any sequence has: slot and position as one number."""


class OverTokens(Protocol):
    """How the values of one column at a sequence's tokens so far become one number.

    A monoid: states of neighbouring stretches of tokens are joined to that of both, and `join` is associative. A state
    is K numbers in float64. States handed to it are of finite values; `RunningStates` keeps the others apart.
    """

    neutral: ClassVar[tuple[float, ...]]
    """The K numbers of no token at all: joined with another state on either side, they leave it as it is."""

    @property
    def width(self) -> int:
        """K. A strategy of width 0 keeps nothing: what it reads is of the token alone."""
        return len(self.neutral)

    @abstractmethod
    def lift(self, values_TC: Tensor) -> Tensor:
        """States of single tokens, float64 [T, C, K]."""

    @abstractmethod
    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        """States of the tokens of both [N, C, K], those of `before_NCK` coming first."""

    @abstractmethod
    def read(self, values_TC: Tensor, state_TCK: Tensor, positions_T: Tensor) -> Tensor:
        """One number from each token's own value and its state, float32 [T, C]. `positions_T` counts from 0."""

    def scan(self, state_TCK: Tensor, start_T: Tensor) -> Tensor:
        """States of all tokens from each one's `start_T` up to and with it [T, C, K], from states of single tokens.

        `start_T`: the row where each token's sequence starts in this pass, ascending.
        This one joins about log2(T) times (Hillis and Steele 1986); a strategy may know a shorter way.
        """
        row_T = torch.arange(len(state_TCK), device=state_TCK.device)
        step = 1
        while step < len(state_TCK):
            joined_NCK = self.join(state_TCK[:-step], state_TCK[step:])
            same_N = row_T[:-step] >= start_T[step:]
            later_NCK = torch.where(same_N[:, None, None], joined_NCK, state_TCK[step:])
            state_TCK = torch.cat([state_TCK[:step], later_NCK])
            step *= 2
        return state_TCK


@dataclass(frozen=True)
class Token(OverTokens):
    """The token's own value, as it is. It needs no sequence, and no other token's value can spoil it."""

    neutral = ()

    def lift(self, values_TC: Tensor) -> Tensor:
        return values_TC.new_empty((*values_TC.shape, 0), dtype=torch.float64)

    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        return after_NCK

    def read(self, values_TC: Tensor, state_TCK: Tensor, positions_T: Tensor) -> Tensor:
        return values_TC.float()


@dataclass(frozen=True)
class Mean(OverTokens):
    """The mean of the values. The state is their sum."""

    neutral = (0.0,)

    def lift(self, values_TC: Tensor) -> Tensor:
        return values_TC.double().unsqueeze(-1)

    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        return before_NCK + after_NCK

    def read(self, values_TC: Tensor, state_TCK: Tensor, positions_T: Tensor) -> Tensor:
        return (state_TCK[..., 0] / (positions_T + 1)[:, None]).float()

    def scan(self, state_TCK: Tensor, start_T: Tensor) -> Tensor:
        """One cumulative sum of the pass, less what came before each sequence."""
        sum_TCK = state_TCK.cumsum(0)
        return sum_TCK - (sum_TCK - state_TCK)[start_T]


@dataclass(frozen=True)
class Max(OverTokens):
    """The largest value. The state is that value, which float32 must hold exactly."""

    neutral = (-torch.inf,)

    def lift(self, values_TC: Tensor) -> Tensor:
        return values_TC.double().unsqueeze(-1)

    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        return torch.maximum(before_NCK, after_NCK)

    def read(self, values_TC: Tensor, state_TCK: Tensor, positions_T: Tensor) -> Tensor:
        return state_TCK[..., 0].float()

    def scan(self, state_TCK: Tensor, start_T: Tensor) -> Tensor:
        """One cumulative maximum of the pass, over integers that a later sequence's always exceed."""
        offset_TCK = (start_T << 32)[:, None, None]
        order_TCK = _flipped(state_TCK.float().view(torch.int32)) + offset_TCK
        most_TCK = (order_TCK.cummax(0).values - offset_TCK).int()
        return _flipped(most_TCK).view(torch.float32).double()


def _flipped(bits: Tensor) -> Tensor:
    """Bits of float32 as int32 in the order of the floats, or back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


TOKEN, MEAN, MAX = Token(), Mean(), Max()


@dataclass(frozen=True, eq=False)
class Sequences:
    """Which tokens of a forward pass belong to which of S sequences, and where their states are kept.

    `bounds`: int64 [S + 1], never descending: the row of each sequence's first new token and, last, the row behind all
    of them. A sequence may have no new token. Tokens behind the last row are padding and belong to none.
    `slots_T`: int64, where each token's state is kept; below 0 it is not.
    `previous_S`: int64, the slot of the token before each sequence's first new one, below 0 where there is none.
    `sound_S`: bool, whether what says so agrees. A sequence of which it does not reads NaN.
    """

    bounds: Tensor
    slots_T: Tensor
    previous_S: Tensor
    sound_S: Tensor


def sequence_of_tokens(bounds: Tensor, tokens: int) -> Tensor:
    """The index of each token's sequence, int64 [T]; S, one more than any, for padding. `bounds` as in `Sequences`."""
    row_T = torch.arange(tokens, device=bounds.device)
    return torch.searchsorted(bounds[1:].contiguous(), row_T, right=True)


@dataclass(frozen=True)
class _Group:
    """The columns of one strategy: which of all, and which numbers of W are theirs."""

    strategy: OverTokens
    columns: Tensor
    numbers: slice

    def of(self, state_NW: Tensor) -> Tensor:
        """This group's states, a view [N, C, K]."""
        return state_NW[:, self.numbers].view(len(state_NW), len(self.columns), self.strategy.width)


class RunningStates:
    """States of C columns at cache slots, each column under its own strategy."""

    def __init__(self, strategies: Sequence[OverTokens], device: torch.device, *, looks: bool | None = None) -> None:
        """`strategies`: one per column. `looks`: whether `extend` may read values off the device.

        It then makes room for slots that nobody reserved, and skips what no sequence of the pass needs. Only on CPU,
        where looking costs nothing, is it the default.
        """
        self._looks = device.type == "cpu" if looks is None else looks
        self._groups: list[_Group] = []
        neutral: list[float] = []
        column_of: list[int] = []
        order: list[int] = []
        for strategy in dict.fromkeys(strategies):
            columns = [column for column, each in enumerate(strategies) if each == strategy]
            numbers = slice(len(neutral), len(neutral) + len(columns) * strategy.width)
            self._groups.append(_Group(strategy, torch.tensor(columns, dtype=torch.int64, device=device), numbers))
            neutral += strategy.neutral * len(columns)
            column_of += [column for column in columns for _ in range(strategy.width)]
            order += columns
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

    def extend(self, values_TC: Tensor, positions_T: Tensor, sequences: Sequences | None) -> Tensor:
        """What every column reads at every token, float32 [T, C]. No sequences: a pass for nobody, which keeps nothing.

        A column with a state reads NaN: from a value on that is not finite or beyond HUGE, in that sequence and all
        that go on from it; after a slot that nobody wrote; in a sequence that is not sound; at a token of none.
        A slot that nobody reserved is an IndexError on CPU, unless this looks, and a failed assertion of other devices.
        """
        if sequences is None or not len(values_TC):
            nothing_TW = self._neutral_W.new_full((len(values_TC), len(self._neutral_W)), torch.nan)
            return self._read(values_TC, nothing_TW, positions_T, torch.ones_like(values_TC, dtype=torch.bool))
        if self._looks:
            self._grow(1 + int(torch.cat([sequences.slots_T, sequences.previous_S]).max()))
        bounds = sequences.bounds.clamp_max(len(values_TC))
        sequence_T = sequence_of_tokens(bounds, len(values_TC))
        sound_S = sequences.sound_S & (sequences.bounds[1:] == bounds[1:])
        alien_T = ~pad(sound_S, (0, 1), value=False)[sequence_T]
        within_TW, broken_TC = self._within(values_TC, bounds[sequence_T])
        broken_TC = broken_TC | alien_T[:, None]

        kept_T = (sequences.slots_T >= 0) & (sequence_T < len(sound_S))
        slots_T, order_T, row_S = _written(torch.where(kept_T, sequences.slots_T, -1), positions_T, bounds, sequences)
        before_SW, lost_SC = self._before(within_TW, broken_TC, sequence_T, row_S, sequences.previous_S)
        broken_TC = broken_TC | lost_SC[sequence_T]
        state_TW = self._join(before_SW[sequence_T], within_TW).masked_fill(broken_TC[:, self._column_W], torch.nan)
        self._kept[slots_T + 1] = state_TW[order_T]
        return self._read(values_TC, state_TW, positions_T, broken_TC)

    def _grow(self, slots: int) -> None:
        if slots >= len(self._kept):
            self.reserve(max(slots, 2 * len(self._kept)))

    def _within(self, values_TC: Tensor, start_T: Tensor) -> tuple[Tensor, Tensor]:
        """States over each sequence's tokens of this pass [T, W], and where one was not finite by then, bool [T, C]."""
        finite_TC = values_TC.abs() <= HUGE
        clean_TC, bad_TC = torch.where(finite_TC, values_TC, 0.0), (~finite_TC).long()
        states = [
            each.strategy.scan(each.strategy.lift(clean_TC[:, each.columns]), start_T).flatten(1)
            for each in self._groups
        ]
        count_TC = bad_TC.cumsum(0)
        return torch.cat(states, dim=1), count_TC > (count_TC - bad_TC)[start_T]

    def _before(
        self, within_TW: Tensor, broken_TC: Tensor, sequence_T: Tensor, row_S: Tensor, previous_S: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States before each sequence's first new token [S + 1, W], and where there is none, bool [S + 1, C].

        A sequence may go on from a row of this pass, `row_S`, whose sequence does so in turn. Each round of the loop
        doubles how many of them a state spans. The last row stands for the token before all sequences.
        """
        sequences = len(previous_S)
        kept_SW = torch.where((previous_S >= 0)[:, None], self._kept[previous_S.clamp_min(-1) + 1], self._neutral_W)
        holes_SC = torch.zeros(sequences, broken_TC.shape[1], device=kept_SW.device)
        holes_SC.index_add_(1, self._column_W, torch.isnan(kept_SW).float())
        here_S, at_S = row_S >= 0, row_S.clamp_min(0)
        before_SW = torch.cat([torch.where(here_S[:, None], within_TW[at_S], kept_SW), self._neutral_W[None]])
        lost_SC = pad(torch.where(here_S[:, None], broken_TC[at_S], holes_SC > 0), (0, 0, 0, 1), value=False)
        parent_S = pad(torch.where(here_S, sequence_T[at_S], sequences), (0, 1), value=sequences)
        alone = self._looks and not bool(here_S.any())
        for _ in range(0 if alone else max(0, sequences - 1).bit_length()):
            before_SW = self._join(before_SW[parent_S], before_SW)
            lost_SC = lost_SC | lost_SC[parent_S]
            parent_S = parent_S[parent_S]
        return before_SW, lost_SC | (parent_S < sequences)[:, None]

    def _join(self, before_NW: Tensor, after_NW: Tensor) -> Tensor:
        joined = [each.strategy.join(each.of(before_NW), each.of(after_NW)).flatten(1) for each in self._groups]
        return torch.cat(joined, dim=1)

    def _read(self, values_TC: Tensor, state_TW: Tensor, positions_T: Tensor, broken_TC: Tensor) -> Tensor:
        read = []
        for each in self._groups:
            read_TC = each.strategy.read(values_TC[:, each.columns], each.of(state_TW), positions_T)
            if each.strategy.width:
                read_TC = read_TC.masked_fill(broken_TC[:, each.columns], torch.nan)
            read.append(read_TC)
        return torch.cat(read, dim=1)[:, self._place_C]


def _written(
    slots_T: Tensor, positions_T: Tensor, bounds: Tensor, sequences: Sequences
) -> tuple[Tensor, Tensor, Tensor]:
    """What this pass writes where: slots and the rows written to them, both [T], and what sequences go on from, [S].

    A slot that is written for several positions, as of a window's ring, keeps the last; the others' slot is -1. The row
    of this pass that computes the token before a sequence's first new one is found by slot and position; -1: none does.
    """
    key_T, order_T = torch.sort(slots_T * _POSITIONS + positions_T)
    written_T = slots_T[order_T]
    last_T = pad(written_T[1:] != written_T[:-1], (0, 1), value=True)
    first_S = bounds[:-1].clamp_max(len(positions_T) - 1)
    wanted_S = sequences.previous_S * _POSITIONS + positions_T[first_S] - 1
    at_S = torch.searchsorted(key_T, wanted_S).clamp_max(len(key_T) - 1)
    here_S = (sequences.previous_S >= 0) & (key_T[at_S] == wanted_S)
    return torch.where(last_T, written_T, -1), order_T, torch.where(here_S, order_T[at_S], -1)
