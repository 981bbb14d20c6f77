"""Whose words a token is of: what strategies over tokens know of a conversation.

Suffixes: T tokens of a forward pass, W sides (asked, written).

A chat template *opens* every message with tokens of its own. A message is *asked* (of the user, the system or a tool)
or *written* (of the model). Messages asked one after another are one side's, and so is an answer. Both are functions of
the tokens so far alone, as keys and values are: whatever chunks, caches and batches a sequence comes in.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Turns(NamedTuple):
    """Bool [T] each.

    `counted`: a token of somebody's text, not of the template's, and not the first of all, at which attention gathers.
    `opens`: a message begins behind this token. `changes`: and it is not of the side that said something last.
    `written`: the token is of an answer, or opens one.
    """

    counted: Tensor
    opens: Tensor
    changes: Tensor
    written: Tensor


def one_message(positions_T: Tensor) -> Turns:
    """Turns of texts without a template: all is asked, in one message."""
    never = torch.zeros_like(positions_T, dtype=torch.bool)
    return Turns(positions_T > 0, never, never, never)


def last_row(at_NT: Tensor) -> Tensor:
    """The newest row up to and with each at which something was, int64 [N, T]; -1 before the first."""
    row_T = torch.arange(at_NT.shape[-1], device=at_NT.device)
    return torch.where(at_NT, row_T, -1).cummax(dim=-1).values


@dataclass(frozen=True, eq=False)
class Stretches:
    """A pass's turns, by side, and where each token's sequence starts in this pass: found once for all strategies.

    `start_T`: a row, ascending.
    """

    turns: Turns
    start_T: Tensor

    @cached_property
    def own(self) -> Tensor:
        """Whether a token is of that side, bool [W, T]."""
        return torch.stack([~self.turns.written, self.turns.written])

    @cached_property
    def counted(self) -> Tensor:
        """Whether a token counts for that side, bool [W, T]."""
        return self.own & self.turns.counted

    @cached_property
    def _last(self) -> Tensor:
        """Rows of the side's newest opening, and of its newest that changed sides, [2, W, T]."""
        return last_row(torch.stack([self.own & self.turns.opens, self.own & self.turns.changes]))

    @cached_property
    def begins(self) -> tuple[Tensor, Tensor]:
        """Where the side's newest message and its newest word begin in this pass, or else the sequence: int64 [W, T]
        each.
        """
        message_WT, word_WT = torch.maximum(self._last, self.start_T)
        return message_WT, word_WT

    @cached_property
    def newest(self) -> tuple[Tensor, Tensor]:
        """As `begins` and `begun`, of what is one text: of what is asked a message, of what is written an answer."""
        (message_WT, word_WT), (opened_WT, changed_WT) = self.begins, self.begun
        return torch.stack([message_WT[0], word_WT[1]]), torch.stack([opened_WT[0], changed_WT[1]])

    @cached_property
    def begun(self) -> tuple[Tensor, Tensor]:
        """Whether a message, and a word, of that side began in this pass's part of the sequence: bool [W, T] each."""
        message_WT, word_WT = self._last >= self.start_T
        return message_WT, word_WT
