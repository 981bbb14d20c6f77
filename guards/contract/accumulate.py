"""How the numbers of a sequence's tokens so far become one number: strategies whose states are joined.

Suffixes: T tokens of a forward pass, C columns, K numbers of a column's state, N any leading dimension.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

from guards.contract.turns import Stretches, Turns

LEAST_OF_A_PIECE = 1 << 13
"""Numbers that `running_max` must have for each of its pieces: with fewer, as in a step of decode, to go through them
one by one costs more than it saves.
"""


class OverTokens(Protocol):
    """How the values of one column at a sequence's tokens so far become one number.

    A monoid: states of neighbouring stretches of tokens are joined to that of both, and `join` is associative. A state
    is K numbers in float64. States handed to it are of finite values; `RunningStates` keeps the others apart.

    A dataclass, whose fields are numbers. `together` makes one of several, whose fields are tensors [C]: so whatever
    uses a field lets it broadcast over columns, the last dimension of values.
    """

    neutral: ClassVar[tuple[float, ...]]
    """The K numbers of no token at all: joined with another state on either side, they leave it as it is."""

    @property
    def width(self) -> int:
        """K. A strategy of width 0 keeps nothing: what it reads is of the token alone."""
        return len(self.neutral)

    @abstractmethod
    def lift(self, values_TC: Tensor, turns: Turns) -> Tensor:
        """States of single tokens, float64 [T, C, K]."""

    def within(self, values_TC: Tensor, stretches: Stretches) -> Tensor:
        """States of all tokens from their sequence's start in this pass up to and with each, float64 [T, C, K].

        By joining; a strategy that knows a closed form gives what reads and joins alike in far fewer operations.
        """
        return scan(self, self.lift(values_TC, stretches.turns), stretches.start_T)

    @abstractmethod
    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        """States of the tokens of both [N, C, K], those of `before_NCK` coming first."""

    @abstractmethod
    def read(self, values_TC: Tensor, state_TCK: Tensor) -> Tensor:
        """One number from each token's own value and its state, float32 [T, C]."""


def together(strategies: Sequence[OverTokens], device: torch.device) -> OverTokens:
    """Strategies of one class, one for each column, as one whose fields are tensors [C], bool or float64."""
    kind: Any = type(strategies[0])

    def of_all(name: str) -> Tensor:
        values = torch.tensor([getattr(strategy, name) for strategy in strategies], dtype=torch.float64)
        return values.to(device, torch.bool if isinstance(getattr(strategies[0], name), bool) else torch.float64)

    return cast(OverTokens, kind(**{each.name: of_all(each.name) for each in fields(kind)}))


def of_numbers(*numbers_NC: Tensor) -> Tensor:
    """States [N, C, K] of their K numbers. One number of all columns lies together, as it is joined, kept and read."""
    return torch.stack(numbers_NC).movedim(0, -1)


def running_max(x_CT: Tensor, begin_CT: Tensor) -> Tensor:
    """The largest x since `begin_CT`, a row that never descends along T, up to and with each row: exact, [C, T].

    `x_CT` may be infinite and must not be NaN.
    """
    pieces = _pieces(begin_CT)
    return _by_ranks(x_CT, begin_CT) if pieces is None else _by_pieces(x_CT, begin_CT, pieces)


def _pieces(begin_CT: Tensor) -> list[int] | None:
    """The rows before which a beginning changes, where they can be read without waiting for a device and are few."""
    if torch.compiler.is_compiling() or begin_CT.device.type != "cpu":
        return None
    most = begin_CT.numel() // LEAST_OF_A_PIECE
    if not most:
        return None
    rows = ((begin_CT[:, 1:] != begin_CT[:, :-1]).any(dim=0).nonzero().flatten() + 1).tolist()
    return rows if len(rows) < most else None


def _by_pieces(x_CT: Tensor, begin_CT: Tensor, rows: Sequence[int]) -> Tensor:
    """Piece by piece, each going on from the last one's end where its beginning is the same."""
    most: list[Tensor] = []
    for start, end in pairwise([0, *rows, x_CT.shape[-1]]):
        piece_CT = x_CT[:, start:end].cummax(dim=-1).values
        if most:
            same_C1 = begin_CT[:, start, None] == begin_CT[:, start - 1, None]
            piece_CT = torch.where(same_C1, torch.maximum(piece_CT, most[-1][:, -1:]), piece_CT)
        most.append(piece_CT)
    return torch.cat(most, dim=-1)


def _by_ranks(x_CT: Tensor, begin_CT: Tensor) -> Tensor:
    """Ranks stand for values, so that a row's beginning and its value fit into one whole number, whose largest so far
    is one operation. For any number of pieces, at several times the cost of a few.
    """
    tokens = x_CT.shape[-1]
    order_CT = x_CT.argsort(dim=-1)
    row_T = torch.arange(tokens, device=x_CT.device)
    rank_CT = torch.empty_like(order_CT).scatter_(-1, order_CT, row_T.expand_as(order_CT))
    return x_CT.gather(-1, (begin_CT * tokens + rank_CT).cummax(dim=-1).indices)


def scan(strategy: OverTokens, state_TCK: Tensor, start_T: Tensor) -> Tensor:
    """States of all tokens from each one's `start_T` up to and with it [T, C, K], from states of single tokens.

    `start_T`: the row where each token's sequence starts in this pass, ascending. It joins about log2(T) times (Hillis
    and Steele 1986).
    """
    row_T = torch.arange(len(state_TCK), device=state_TCK.device)
    step = 1
    while step < len(state_TCK):
        joined_NCK = strategy.join(state_TCK[:-step], state_TCK[step:])
        same_N = row_T[:-step] >= start_T[step:]
        later_NCK = torch.where(same_N[:, None, None], joined_NCK, state_TCK[step:])
        state_TCK = torch.cat([state_TCK[:step], later_NCK])
        step *= 2
    return state_TCK


@dataclass(frozen=True)
class Token(OverTokens):
    """The token's own value, as it is. It needs no sequence, and no other token's value can spoil it."""

    neutral = ()

    def lift(self, values_TC: Tensor, turns: Turns) -> Tensor:
        return values_TC.new_empty((*values_TC.shape, 0), dtype=torch.float64)

    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        return after_NCK

    def read(self, values_TC: Tensor, state_TCK: Tensor) -> Tensor:
        return values_TC.float()


TOKEN = Token()
