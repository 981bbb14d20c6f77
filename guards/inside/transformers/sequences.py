"""Which rows of a forward pass on transformers belong to one sequence, and where their running sums are kept.

Suffixes: T tokens, S sequences.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guards.errors import GuardReadingError


@dataclass(frozen=True)
class Sequences:
    """As `guards.contract.running.RunningMeans.extend` wants them."""

    starts_S: Tensor
    slots_T: Tensor
    previous_S: Tensor


def find_sequences(kwargs: Mapping[str, Any], positions_BT: Tensor) -> Sequences:
    """Reads them off a forward pass's arguments: a packed one of continuous batching, or whole rows without a cache.

    Raises GuardReadingError on any other pass: a mean would silently be of a part of the text.
    """
    if "cu_seq_lens_q" in kwargs:
        return _packed(kwargs, positions_BT.reshape(-1))
    batch, length = positions_BT.shape
    expected_T = torch.arange(length, device=positions_BT.device)
    if kwargs.get("past_key_values") is not None or not bool((positions_BT == expected_T).all()):
        raise GuardReadingError(
            "got a pass that goes on from a cache whose slots are not known: use continuous batching"
        )
    starts_S = torch.arange(0, batch * length, length, device=positions_BT.device)
    nowhere_T = torch.full((batch * length,), -1, device=positions_BT.device)
    return Sequences(starts_S, nowhere_T, nowhere_T[starts_S])


def _packed(kwargs: Mapping[str, Any], positions_T: Tensor) -> Sequences:
    if kwargs.get("block_table") is not None or not kwargs.get("write_index"):
        raise GuardReadingError("got a forward pass without cache indices: pooled guards need them")
    # Indices lie in the order of the cache's groups of layers, lengths by the kind of layer. A group that attends to
    # everything is taken where there is one: a window's slots are a ring.
    kinds = [allocator.layer_type for allocator in kwargs["cache"].cache_allocators.values()]
    group = kinds.index("full_attention") if "full_attention" in kinds else 0
    bounds, ends = kwargs["cu_seq_lens_q"].long(), kwargs["cu_seq_lens_k"][kinds[group]].long()
    write_T, read = kwargs["write_index"][group], kwargs["read_index"][group]
    tokens = len(positions_T)
    if int(bounds[-1]) != tokens or len(write_T) != tokens or (len(read) and int(ends[-1]) != len(read)):
        raise GuardReadingError(
            f"got {len(write_T)} slots to write and {len(read)} to read for sequences of {int(bounds[-1])} and "
            f"{int(ends[-1])} tokens, wanted slots for {tokens} tokens: cannot follow sequences"
        )
    lengths_S = bounds[1:] - bounds[:-1]
    used_S = lengths_S > 0
    starts_S = bounds[:-1][used_S]
    past_S = positions_T[starts_S]
    if not len(read):
        if bool((past_S > 0).any()):
            raise GuardReadingError("got a sequence that goes on from its cache, and no indices to read it")
        return Sequences(starts_S, write_T, torch.full_like(past_S, -1))
    # The new tokens' own slots end a sequence's part of the read indices; the token before them lies just ahead.
    ahead_S = ends[1:][used_S] - lengths_S[used_S] - 1
    return Sequences(starts_S, write_T, torch.where(past_S > 0, read[ahead_S.clamp_min(0)], -1))
