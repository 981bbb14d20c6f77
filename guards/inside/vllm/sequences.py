"""Which rows of a forward pass of vLLM belong to one sequence, and at which cache slots their states are kept.

Suffixes: T tokens, S sequences, B blocks of a sequence. Nothing here waits for the device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from guards.contract.slots import HISTORY, Sequences, sequence_of_tokens
from guards.errors import GuardReadingError

Finder = Callable[[Tensor], Sequences | None]
"""Given the positions of a pass's tokens; None in a pass for nobody, by which vLLM warms up."""


def finder(runner: Any) -> Finder:
    """Reads the attention metadata of the pass that `runner` runs, for the first of its cache groups that attends.

    What it returns raises GuardReadingError where the kind of pass or of cache is one that cannot be followed.
    """

    def find(positions_T: Tensor) -> Sequences | None:
        from vllm.forward_context import get_forward_context

        metadata = get_forward_context().attn_metadata
        if not metadata:
            return None
        if not isinstance(metadata, dict):
            raise GuardReadingError("got micro-batches: guards over spans cannot follow a sequence through them")
        groups = runner.kv_cache_config.kv_cache_groups
        sizes = {each.kv_cache_spec.block_size for each in groups}
        if len(sizes) != 1 and runner.cache_config.enable_prefix_caching:
            raise GuardReadingError(
                f"the cache's groups of layers have blocks of {', '.join(map(str, sorted(sizes)))} tokens: a prefix "
                "may be found in part of a block, whose states guards over spans cannot follow; switch prefix caching "
                "off"
            )
        index = _attending(groups)
        if index is None or not groups[index].layer_names:
            raise GuardReadingError(
                "this stage has no layer of the first of the cache's groups that attends, by whose slots guards over "
                "spans keep their states"
            )
        block_tokens = runner.input_batch.block_table[index].block_size
        return sequences_of(metadata[groups[index].layer_names[0]], positions_T, block_tokens)

    return find


def _attending(groups: Sequence[Any]) -> int | None:
    """The first group whose blocks hold keys and values by token, and not one state a sequence."""
    return next((at for at, each in enumerate(groups) if not hasattr(each.kv_cache_spec, "mamba_type")), None)


def slots_of(cache: Any) -> int:
    """How many slots vLLM's cache of that configuration has, by the blocks of its first group that attends."""
    index = _attending(cache.kv_cache_groups)
    return 0 if index is None else int(cache.num_blocks * cache.kv_cache_groups[index].kv_cache_spec.block_size)


def sequences_of(layer: Any, positions_T: Tensor, block_tokens: int) -> Sequences:
    """The sequences that one layer's attention metadata describes, in a cache of blocks of `block_tokens`.

    One with a token whose slot is not that of its block is not sound. So is every one of a pass that caches no token,
    as those which are only timed or recorded. Raises GuardReadingError where sequences have no blocks.
    """
    bounds, tokens = layer.query_start_loc.long(), len(positions_T)
    blocks_SB = layer.block_table.long()[: len(bounds) - 1]
    if len(blocks_SB) < len(bounds) - 1 or not blocks_SB.shape[1]:
        raise GuardReadingError(f"got a block table {list(blocks_SB.shape)} for {len(bounds) - 1} sequences")
    # The model may be given more tokens than are cached, to fill a size that was recorded.
    slots_T = pad(layer.slot_mapping.long()[:tokens], (0, max(0, tokens - len(layer.slot_mapping))), value=-1)
    sequence_T = sequence_of_tokens(bounds, tokens)
    blocks_SB = pad(blocks_SB, (0, 0, 0, 1))  # a last row for padding
    agree_T = _slots(blocks_SB, sequence_T, positions_T, block_tokens) == slots_T
    wrong_S = torch.zeros(len(blocks_SB), dtype=torch.int64, device=slots_T.device)
    wrong_S = wrong_S.index_add(0, sequence_T, (~agree_T).long())[:-1]
    back_H = torch.arange(-HISTORY, 0, device=slots_T.device)
    before_SH = positions_T[bounds[:-1].clamp_max(tokens - 1)][:, None] + back_H
    sequence_SH = torch.arange(len(wrong_S), device=slots_T.device)[:, None].expand_as(before_SH)
    before_SH = torch.where(before_SH >= 0, _slots(blocks_SB, sequence_SH, before_SH, block_tokens), -1)
    return Sequences(bounds, slots_T, before_SH, wrong_S == 0)


def _slots(blocks_SB: Tensor, sequence_N: Tensor, positions_N: Tensor, block_tokens: int) -> Tensor:
    """The slots of these sequences' positions; -2, which no token has, where a sequence has no block for them."""
    at_N = torch.div(positions_N, block_tokens, rounding_mode="floor")
    there_N = (at_N >= 0) & (at_N < blocks_SB.shape[1])
    block_N = blocks_SB[sequence_N, torch.where(there_N, at_N, 0)]
    return torch.where(there_N, block_N * block_tokens + positions_N % block_tokens, -2)
