"""Which tokens of a forward pass go on from which, when a sequence's tokens come in pieces and others' between them.

Suffixes: T tokens of a forward pass, S sequences in it, H tokens before a sequence's first new one.

What is kept of a sequence lies at the cache slot of its token, as that token's keys and values do. A sequence goes on
from the slot of the token before its first new one, whoever computes that token: a pass before, another request with
the same prefix, or, since vLLM shares blocks that it has only just scheduled, another sequence of this very pass. One
slot that was given to another sequence holds that one's, so an engine must hand over slots whose token is computed, at
the latest, in this pass.

Nothing here waits for the device: no branch, no size and no error hangs on a tensor's values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

HISTORY = 16
"""H: how many slots before a sequence's first new token an engine names."""
_POSITIONS = 1 << 32
"""More than any sequence has: slot and position as one number."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """Which tokens of a forward pass belong to which of S sequences, and where what is kept of them lies.

    `bounds`: int64 [S + 1], never descending: the row of each sequence's first new token and, last, the row behind all
    of them. A sequence may have no new token. Tokens behind the last row are padding and belong to none.
    `slots_T`: int64, where each token's state is kept; below 0 it is not.
    `before_SH`: int64, the slots of the tokens before each sequence's first new one, the nearest last; below 0 where
    there is none.
    `sound_S`: bool, whether what says so agrees. A sequence of which it does not reads NaN.
    `longest`: how many new tokens the longest one has, where the host knows. A longer one reads NaN.
    `shares`: whether one may go on from a token of this pass. If not, one that does reads NaN.
    `fresh`: whether each starts in this pass. One that goes on from a slot all the same reads NaN.
    """

    bounds: Tensor
    slots_T: Tensor
    before_SH: Tensor
    sound_S: Tensor
    longest: int | None = None
    shares: bool = True
    fresh: bool = False


def sequence_of_tokens(bounds: Tensor, tokens: int) -> Tensor:
    """The index of each token's sequence, int64 [T]; S, one more than any, for padding. `bounds` as in `Sequences`."""
    row_T = torch.arange(tokens, device=bounds.device)
    return torch.searchsorted(bounds[1:].contiguous(), row_T, right=True)


@dataclass(frozen=True, eq=False)
class Links:
    """A pass's tokens, and what each goes on from.

    `start_T` is the row where each token's sequence starts in this pass, ascending; `alien_T` is true where a token
    belongs to no sound sequence. `slots_T` is where to keep each: one more than its slot, 0 for what is not kept.
    `row_S` is the row of this pass that computes the token before a sequence's first new one, -1 where none does;
    `highest` the highest slot where it was looked for, else -1. As far as the engine says or anybody looked: `fresh`
    says that no sound sequence goes on from anything, `alone` that none goes on from a row of this pass, `single` that
    none has more than one.
    """

    positions_T: Tensor
    sequence_T: Tensor
    start_T: Tensor
    alien_T: Tensor
    slots_T: Tensor
    before_SH: Tensor
    row_S: Tensor
    highest: int
    fresh: bool
    alone: bool
    single: bool


def link(positions_T: Tensor, sequences: Sequences, *, looks: bool) -> Links:
    """Finds out, once for all that is kept. `looks`: whether values may be read off the device to save work."""
    tokens = len(positions_T)
    bounds = sequences.bounds.clamp_max(tokens)
    sequence_T = sequence_of_tokens(bounds, tokens)
    length_S, longest = bounds[1:] - bounds[:-1], sequences.longest
    sound_S = sequences.sound_S & (sequences.bounds[1:] == bounds[1:])
    if longest is not None:
        sound_S = sound_S & (length_S <= longest)
    kept_T = (sequences.slots_T >= 0) & (sequence_T < len(sound_S))
    slots_T, row_S = _written(torch.where(kept_T, sequences.slots_T, -1), positions_T, bounds, sequences)
    previous_S = sequences.before_SH[:, -1]
    if not sequences.shares:
        sound_S = sound_S & (row_S < 0)
    if sequences.fresh:
        sound_S = sound_S & (previous_S < 0)
    return Links(
        positions_T=positions_T,
        sequence_T=sequence_T,
        start_T=bounds[sequence_T],
        alien_T=~pad(sound_S, (0, 1), value=False)[sequence_T],
        slots_T=slots_T + 1,
        before_SH=sequences.before_SH,
        row_S=row_S,
        highest=int(torch.cat([sequences.slots_T, sequences.before_SH.flatten()]).max()) if looks else -1,
        fresh=sequences.fresh or (looks and not bool((previous_S >= 0).any())),
        alone=not sequences.shares or (looks and not bool((row_S >= 0).any())),
        single=longest == 1 or (looks and not bool((length_S > 1).any())),
    )


def _written(slots_T: Tensor, positions_T: Tensor, bounds: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """The slot that each token is kept at, [T], and what sequences go on from, [S].

    A slot that is written for several positions, as of a window's ring, keeps the last; the others' slot is -1. The row
    of this pass that computes the token before a sequence's first new one is found by slot and position; -1: none does.
    """
    key_T, order_T = torch.sort(slots_T * _POSITIONS + positions_T)
    written_T = slots_T[order_T]
    last_T = pad(written_T[1:] != written_T[:-1], (0, 1), value=True)
    first_S = bounds[:-1].clamp_max(len(positions_T) - 1)
    previous_S = sequences.before_SH[:, -1]
    wanted_S = previous_S * _POSITIONS + positions_T[first_S] - 1
    at_S = torch.searchsorted(key_T, wanted_S).clamp_max(len(key_T) - 1)
    here_S = (previous_S >= 0) & (key_T[at_S] == wanted_S)
    kept_T = torch.empty_like(slots_T).scatter_(0, order_T, torch.where(last_T, written_T, -1))
    return kept_T, torch.where(here_S, order_T[at_S], -1)
