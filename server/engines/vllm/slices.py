"""Activations as several processes hand them back, put together again.

Suffixes: R rows (tokens), F feed-forward width (d_ff).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from guards.errors import AttachError

Slice = tuple[int, bytes, bytes]
"""A rank's part of one layer: which slice of the width it is, int64 (example, position) by row, and the activations."""


def plan_groups(rows: Sequence[int], budget: int) -> list[list[int]]:
    """Groups of example indices, in order: each of at most `budget` rows, or of one example that has more."""
    groups: list[list[int]] = []
    room = 0
    for index, count in enumerate(rows):
        if not groups or count > room:
            groups.append([])
            room = budget
        groups[-1].append(index)
        room -= count
    return groups


def assemble(slices: Sequence[Slice | None], rows_R2: Tensor, width: int, dtype: torch.dtype, layer: int) -> Tensor:
    """One layer's activations [R, F] from all ranks, in the order of `rows_R2`: (example, position), ascending.

    A prompt that vLLM put off and began again brings some rows twice; the later one is taken. Raises AttachError when
    rows are missing, unasked for, or not of the same tokens on every rank.
    """
    found = sorted((part for part in slices if part is not None), key=lambda part: part[0])
    if not found:
        raise AttachError(f"no rank of vLLM holds layer {layer}")
    got_R2 = _tensor(found[0][1], torch.int64).view(-1, 2)
    if any(part[1] != found[0][1] for part in found):
        raise AttachError(f"layer {layer}: vLLM's ranks ran different tokens")
    key_R, order_R = torch.sort(_key(got_R2), stable=True)
    latest_R = torch.ones_like(key_R, dtype=torch.bool)
    latest_R[:-1] = key_R[:-1] != key_R[1:]
    if not torch.equal(key_R[latest_R], _key(rows_R2)):
        raise AttachError(
            f"layer {layer}: vLLM gave the activations of {int(latest_R.sum())} tokens, wanted {len(rows_R2)} others"
        )
    x_RF = torch.cat([_tensor(part[2], dtype).view(got_R2.shape[0], -1) for part in found], dim=1)
    if x_RF.shape[1] != width:
        raise AttachError(f"layer {layer}: got {x_RF.shape[1]} neurons over vLLM's ranks, wanted {width}")
    return x_RF.index_select(0, order_R[latest_R])


def _key(rows_R2: Tensor) -> Tensor:
    """(example, position) as one number that sorts as they do."""
    return (rows_R2[:, 0] << 32) + rows_R2[:, 1]


def _tensor(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
