"""What strategies over tokens make of whole texts, by the code that serves.

Suffixes: T tokens of a text, P packed tokens, E texts, C strategies.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from guards.calibration.activations import TokenIds
from guards.contract.accumulate import OverTokens
from guards.contract.running import RunningStates
from guards.contract.slots import HISTORY, Links, Sequences, link
from guards.contract.turn_finder import TurnFinder
from guards.contract.turns import Turns
from guards.model.openings import Opening

PACKED = 1 << 14
"""Tokens that are looked at together."""
_CPU = torch.device("cpu")


def _whole(lengths: Sequence[int]) -> Links:
    """Texts one behind the other, of which nothing is kept."""
    positions_P = torch.cat([torch.arange(length) for length in lengths])
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    nowhere = torch.full((len(positions_P),), -1)
    before_SH = torch.full((len(lengths), HISTORY), -1)
    sound_S = torch.ones(len(lengths), dtype=torch.bool)
    return link(positions_P, Sequences(bounds, nowhere, before_SH, sound_S), looks=True)


def turns_of(ids: TokenIds, openings: Sequence[Opening], *, whole: bool = False) -> Turns:
    """Whose words each token of a text is of, bool [T] each; `whole` as of `TurnFinder`."""
    return TurnFinder(openings, _CPU, whole=whole).find(torch.tensor(ids), _whole([len(ids)]))


def _packs(lengths: Sequence[int]) -> Iterator[slice]:
    start, tokens = 0, 0
    for index, length in enumerate(lengths):
        if tokens and tokens + length > PACKED:
            yield slice(start, index)
            start, tokens = index, 0
        tokens += length
    yield slice(start, len(lengths))


def read_texts(values: Sequence[Tensor], turns: Sequence[Turns], strategies: Sequence[OverTokens]) -> Iterator[Tensor]:
    """What each strategy reads at each token of each text, float32 [T, C]. `values`: float32 [T] of each text."""
    lengths = [len(value_T) for value_T in values]
    for pack in _packs(lengths) if values else ():
        value_P = torch.cat(list(values[pack]))
        together = Turns(*(torch.cat(each) for each in zip(*turns[pack], strict=True)))
        states = RunningStates(strategies, _CPU)
        read_PC = states.extend(value_P[:, None].expand(-1, len(strategies)), _whole(lengths[pack]), together)
        yield from torch.split(read_PC, lengths[pack])
