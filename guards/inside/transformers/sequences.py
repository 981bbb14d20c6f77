"""Which rows of a forward pass on transformers belong to one sequence, and where their states are kept.

Suffixes: B rows of a batch, T tokens, S sequences, N any dimensions. Nothing here waits for the device.

The batcher's cache has a page of every layer's keys, and one of its values, for each block of tokens. A token's index
is that of its row in the first page of its block: a slot counts tokens, without the rows between.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from guards.contract.slots import HISTORY, Sequences
from guards.errors import GuardReadingError


def slots_of(kwargs: Mapping[str, Any]) -> int:
    """How many slots the cache of a forward pass has, by the group that `find_sequences` takes; 0 without a cache."""
    if "cu_seq_lens_q" not in kwargs:
        return 0
    allocator = _allocators(kwargs)[_group(kwargs)]
    rows = int(allocator.cache_tensor.shape[:2].numel())  # keys' and values' are counted alike
    return -(-rows // int(allocator.block_physical_stride)) * int(allocator.tokens_per_page)


def _slots(allocator: Any, index_N: Tensor) -> Tensor:
    """The slots of a cache's indices; -1 of what is no index of a token."""
    block_N = torch.div(index_N, allocator.block_physical_stride, rounding_mode="floor")
    within_N = index_N - block_N * allocator.block_physical_stride
    return torch.where(within_N < allocator.tokens_per_page, block_N * allocator.tokens_per_page + within_N, -1)


def find_sequences(kwargs: Mapping[str, Any], positions_BT: Tensor) -> Sequences:
    """Reads them off a forward pass's arguments: a packed one of continuous batching, or whole rows without a cache.

    A sequence whose rows, positions and slots disagree is not sound. Raises GuardReadingError on any other pass: a
    state would silently be of a part of the text.
    """
    if "cu_seq_lens_q" in kwargs:
        return _packed(kwargs, positions_BT.reshape(-1))
    if kwargs.get("past_key_values") is not None:
        raise GuardReadingError(
            "got a pass that goes on from a cache whose slots are not known: use continuous batching"
        )
    batch, length = positions_BT.shape
    bounds = torch.arange(batch + 1, device=positions_BT.device) * length
    nowhere_T = torch.full((batch * length,), -1, device=positions_BT.device)
    whole_B = (positions_BT == torch.arange(length, device=positions_BT.device)).all(dim=1)
    before_BH = nowhere_T.new_full((batch, HISTORY), -1)
    return Sequences(bounds, nowhere_T, before_BH, whole_B, longest=length, shares=False, fresh=True)


def _group(kwargs: Mapping[str, Any]) -> int:
    """A group of layers that attends to everything, where there is one: a window's slots are a ring."""
    kinds = [allocator.layer_type for allocator in _allocators(kwargs)]
    return kinds.index("full_attention") if "full_attention" in kinds else 0


def _allocators(kwargs: Mapping[str, Any]) -> list[Any]:
    """Of the cache's groups of layers."""
    return list(kwargs["cache"].cache_allocators.values())


def _packed(kwargs: Mapping[str, Any], positions_T: Tensor) -> Sequences:
    if kwargs.get("block_table") is not None or not kwargs.get("write_index"):
        raise GuardReadingError("got a forward pass without cache indices: guards over spans need them")
    # Indices lie in the order of the cache's groups of layers, lengths by the kind of layer.
    group = _group(kwargs)
    allocator = _allocators(kwargs)[group]
    bounds, ends = kwargs["cu_seq_lens_q"].long(), kwargs["cu_seq_lens_k"][allocator.layer_type].long()
    write_T, read = _slots(allocator, kwargs["write_index"][group]), kwargs["read_index"][group]
    tokens = len(positions_T)
    if len(write_T) != tokens:
        raise GuardReadingError(f"got {len(write_T)} slots to write for {tokens} tokens: cannot follow sequences")
    # The batcher shares a prefix once the pass that computed it has ended.
    known: dict[str, Any] = {"longest": kwargs.get("max_length_q"), "shares": False}
    past_S = positions_T[bounds[:-1].clamp_max(tokens - 1)]
    sound_S = bounds[-1:].expand(len(past_S)) == tokens
    if not len(read):
        return Sequences(
            bounds, write_T, write_T.new_full((len(past_S), HISTORY), -1), sound_S & (past_S <= 0), fresh=True, **known
        )
    # The new tokens' own slots end a sequence's part of the read indices; the tokens before them lie just ahead.
    back_H = torch.arange(-HISTORY, 0, device=bounds.device)
    ahead_SH = (ends[1:] - (bounds[1:] - bounds[:-1]))[:, None] + back_H
    there_SH = past_S[:, None] + back_H >= 0
    slot_SH = _slots(allocator, read[ahead_SH.clamp(0, len(read) - 1)])
    sound_S = sound_S & (ends[-1:] == len(read)) & ((slot_SH >= 0) | ~there_SH).all(dim=1)
    return Sequences(bounds, write_T, torch.where(there_SH, slot_SH, -1), sound_S, **known)
