"""Running states as tests drive them: a pass's tokens and sequences, without turns."""

from typing import Any

import torch
from torch import Tensor

from guards.contract.running import RunningStates
from guards.contract.slots import Sequences, link
from guards.contract.turns import one_message


def sequences(bounds: Any, slots: Any, previous: Any, sound: Any = None) -> Sequences:
    """`previous` are the slots of the tokens before."""
    previous_S = torch.as_tensor(previous, dtype=torch.int64)
    sound_S = torch.ones(len(previous_S), dtype=torch.bool) if sound is None else torch.as_tensor(sound)
    return Sequences(torch.as_tensor(bounds), torch.as_tensor(slots), previous_S[:, None], sound_S)


def extend(
    store: RunningStates, values_TC: Tensor, positions_T: Tensor, found: Sequences | None, *, looks: bool = True
) -> Tensor:
    """As `Bookkeeping` does; `looks` as of `link`."""
    if found is None or not len(values_TC):
        return store.nothing(values_TC)
    return store.extend(values_TC, link(positions_T, found, looks=looks), one_message(positions_T))
