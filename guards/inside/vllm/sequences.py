"""Which rows of a forward pass of vLLM belong to one sequence, and at which cache slots their running sums are kept.

Suffixes: T tokens, S sequences, B blocks of a sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guards.errors import GuardReadingError


@dataclass(frozen=True)
class Sequences:
    """As `RunningMeans.extend` wants them, of the first `rows` tokens; the others are padding."""

    rows: int
    starts_S: Tensor
    slots_T: Tensor
    previous_S: Tensor


Finder = Callable[[Tensor], Sequences | None]
"""Given the positions of a pass's tokens; None in a pass for nobody, by which vLLM warms up."""


def finder(runner: Any) -> Finder:
    """Reads the attention metadata of the pass that `runner` runs, for the first of its cache groups.

    What it returns raises GuardReadingError where the metadata does not say.
    """

    def find(positions_T: Tensor) -> Sequences | None:
        from vllm.forward_context import get_forward_context

        metadata = get_forward_context().attn_metadata
        if not metadata:
            return None
        if not isinstance(metadata, dict):
            raise GuardReadingError("got micro-batches: pooled guards cannot follow a sequence through them")
        groups = runner.kv_cache_config.kv_cache_groups
        if len({each.kv_cache_spec.block_size for each in groups}) != 1 or not groups[0].layer_names:
            raise GuardReadingError(
                "the cache's groups of layers have blocks of different sizes, or this stage has no layer of the first: "
                "a prefix may be found in part of a block, whose sums pooled guards cannot follow"
            )
        block_tokens = runner.input_batch.block_table[0].block_size
        return sequences_of(metadata[groups[0].layer_names[0]], positions_T, block_tokens)

    return find


def sequences_of(layer: Any, positions_T: Tensor, block_tokens: int) -> Sequences | None:
    """The sequences that one layer's attention metadata describes, in a cache of blocks of `block_tokens`.

    None where no token is cached, as in passes that are only timed or recorded.
    Raises GuardReadingError where blocks and slots disagree.
    """
    bounds, slots_T, blocks_SB = layer.query_start_loc.long(), layer.slot_mapping.long(), layer.block_table.long()
    rows = int(bounds[-1])
    used_S = bounds[1:] > bounds[:-1]
    starts_S, blocks_SB = bounds[:-1][used_S], blocks_SB[: len(used_S)][used_S]
    past_S, slots_T = positions_T[starts_S], slots_T[:rows]
    if bool((slots_T < 0).all()):
        return None
    if not torch.equal(_slots(blocks_SB, past_S, block_tokens), slots_T[starts_S]):
        raise GuardReadingError(
            f"cache slots are not those of blocks of {block_tokens} tokens: cannot follow sequences"
        )
    before_S = _slots(blocks_SB, (past_S - 1).clamp_min(0), block_tokens)
    return Sequences(rows, starts_S, slots_T, torch.where(past_S > 0, before_S, -1))


def _slots(blocks_SB: Tensor, positions_S: Tensor, block_tokens: int) -> Tensor:
    block_S = blocks_SB.gather(1, (positions_S // block_tokens)[:, None])[:, 0]
    return block_S * block_tokens + positions_S % block_tokens
