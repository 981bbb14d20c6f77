"""Runs a model over encoded examples and hands the activations of one site to a consumer, batch by batch.

Suffixes: B examples of a batch, T tokens, F neurons of the site.

Nothing is kept: a consumer sees each batch once. Examples are sorted by length and padded on the right, so that
positions need no correction; padded tokens never reach the consumer, and with causal attention they reach no real
token either. The output head is not run, and the pass ends at the last layer that is wanted.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guards.calibration.activations import Consumer, TokenIds, Tokens, mean_by_example, wanted_span
from guards.errors import AttachError, CalibrationError
from guards.model.sites import Site

if TYPE_CHECKING:
    from guards.inside.transformers.loading import LoadedModel


BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Measured with 5.5M parameters: 7,300 tokens a CPU second with 1,024, 5,000 with 8,192, which fall out of cache."""


@dataclass(frozen=True)
class Batch:
    """Right-padded examples. `mask_BT` is 1 on real tokens; `examples_B` says which example a row is."""

    ids_BT: Tensor
    mask_BT: Tensor
    examples_B: Tensor


class _PassOverError(Exception):
    """Ends a forward pass after the last wanted layer."""


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Groups of example indices, longest first so that memory runs out at once or never.

    A group's padded size (longest times count) is at most `batch_tokens`; an example longer than that goes alone.
    """
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not room:
            groups.append([])
            room = max(1, batch_tokens // max(lengths[index], 1))
        groups[-1].append(index)
        room -= 1
    return groups


def make_batch(examples: Sequence[TokenIds], group: Sequence[int], device: torch.device) -> Batch:
    """Pads the group's examples on the right with id 0, which no real token attends to."""
    width = max(len(examples[index]) for index in group)
    ids_BT = torch.zeros((len(group), width), dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, index in enumerate(group):
        ids_BT[row, : len(examples[index])] = torch.tensor(examples[index], dtype=torch.long)
        mask_BT[row, : len(examples[index])] = 1
    return Batch(ids_BT.to(device), mask_BT.to(device), torch.tensor(group, device=device))


def _selection(batch: Batch, tokens: Tokens, skip: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Flat indices into [B*T] of the tokens wanted, and the example of each."""
    width = batch.mask_BT.shape[1]
    flat = [
        row * width + position
        for row, length in enumerate(batch.mask_BT.sum(dim=1).tolist())
        for position in wanted_span(length, tokens, skip).positions
    ]
    flat_T = torch.tensor(flat, dtype=torch.long, device=batch.mask_BT.device)
    return flat_T, batch.examples_B[flat_T // width]


@torch.no_grad()
def stream(
    loaded: "LoadedModel",
    site: Site,
    layers: Sequence[int],
    examples: Sequence[TokenIds],
    consume: Consumer,
    *,
    tokens: Tokens,
    batch_tokens: int | None,
    skip: tuple[int, int] = (0, 0),
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """One pass over the examples.

    `skip`: how many leading and trailing tokens of every example are no part of `Tokens.ALL`. `batch_tokens`: padded
    tokens in a batch, None for what suits the device. `advance` is told the real tokens of each batch when it is done.
    Raises AttachError when a wanted layer's hook does not run exactly once per batch.
    """
    last, fired = max(layers), []
    budget = BATCH_TOKENS.get(loaded.device.type, BATCH_TOKENS["cpu"]) if batch_tokens is None else batch_tokens
    selected: tuple[Tensor, Tensor] | None = None

    def receive(layer: int, x: Tensor) -> None:
        assert selected is not None
        fired.append(layer)
        flat_TF = x.reshape(-1, x.shape[-1])
        if site is Site.PRE_ACTIVATION and loaded.sites.family.fused_gate_up:
            flat_TF = flat_TF[:, : flat_TF.shape[-1] // 2]
        found_TF, example_T = flat_TF.index_select(0, selected[0]), selected[1]
        consume(layer, *(mean_by_example(found_TF, example_T) if tokens is Tokens.MEAN else (found_TF, example_T)))
        if layer == last:
            raise _PassOverError

    def input_hook(layer: int) -> Callable[[Any, tuple[Any, ...]], None]:
        return lambda _, args: receive(layer, args[0])

    def output_hook(layer: int) -> Callable[[Any, Any, Tensor], None]:
        return lambda _, __, output: receive(layer, output)

    with ExitStack() as stack:
        for layer in sorted(set(layers)):
            module = loaded.sites.layers[layer].at(site)
            if site is Site.PRE_ACTIVATION:
                handle = module.register_forward_hook(output_hook(layer))
            else:
                handle = module.register_forward_pre_hook(input_hook(layer))
            stack.callback(handle.remove)
        for group in plan_batches([len(ids) for ids in examples], budget):
            batch = make_batch(examples, group, loaded.device)
            selected = _selection(batch, tokens, skip)
            fired.clear()
            try:
                # Not the body alone: guards hook the model. The pass ends before its head.
                loaded.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False)
            except _PassOverError:
                pass
            except torch.OutOfMemoryError as error:
                raise CalibrationError(
                    f"out of memory with {batch.ids_BT.numel()} tokens in a batch: lower `batch_tokens`"
                ) from error
            if fired != sorted(set(layers)):
                raise AttachError(f"hooks ran at layers {fired}, wanted {sorted(set(layers))} once each")
            advance(int(batch.mask_BT.sum()))
