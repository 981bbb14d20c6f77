"""Runs a model over encoded examples and hands the activations of one site to a consumer, batch by batch.

Suffixes: B examples of a batch, T tokens, F neurons of the site.

Nothing is kept: a consumer sees each batch once. Examples are sorted by length and padded on the right, so that
positions need no correction; padded tokens never reach the consumer, and with causal attention they reach no real
token either. The output head is not run, and the pass ends at the last layer that is wanted.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from guards.calibration.activations import Consumer, Pass, TokenIds, Tokens, wanted_span
from guards.errors import AttachError, CalibrationError
from guards.inside.taps import Purpose, install
from guards.model.sites import ModelSites, Place

BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Measured with 5.5M parameters: 7,300 tokens a CPU second with 1,024, 5,000 with 8,192, which fall out of cache."""


class RunnableModel(Protocol):
    """What a pass needs of a loaded model."""

    @property
    def model(self) -> Any: ...

    @property
    def sites(self) -> ModelSites: ...

    @property
    def device(self) -> torch.device: ...


@dataclass(frozen=True)
class Batch:
    """Right-padded examples. `mask_BT` is 1 on real tokens; `examples_B` says which example a row is."""

    ids_BT: Tensor
    mask_BT: Tensor
    examples_B: Tensor


class PassOverError(Exception):
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


class _Receiver(nn.Module):
    """Picks the wanted tokens of one layer and hands them over."""

    def __init__(self, layer: int, receive: Callable[[int, Tensor], None]) -> None:
        super().__init__()
        self._layer, self._receive = layer, receive

    def forward(self, x_TF: Tensor) -> None:
        self._receive(self._layer, x_TF)


def _too_much(examples: int, tokens: int) -> str:
    """What to do where the memory is too little for a batch of so many examples, padded to so many tokens."""
    if examples == 1:
        return (
            f"out of memory with one example of {tokens} tokens, the least that a batch holds: leave out examples as "
            "long as that, or give a device with more memory"
        )
    return f"out of memory with {examples} examples of up to {tokens} tokens in a batch: lower `batch_tokens`"


@torch.no_grad()
def stream(
    loaded: "RunnableModel",
    wanted: Pass,
    examples: Sequence[TokenIds],
    consume: Consumer,
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """One pass over the examples. `advance` is told the real tokens of each batch when it is done.

    Raises AttachError when a wanted layer's hook does not run exactly once per batch, CalibrationError where the memory
    is too little for one.
    """
    layers, fired = sorted(set(wanted.layers)), []
    budget = wanted.batch_tokens or BATCH_TOKENS.get(loaded.device.type, BATCH_TOKENS["cpu"])
    selected: tuple[Tensor, Tensor] | None = None

    def receive(layer: int, x_TF: Tensor) -> None:
        assert selected is not None
        fired.append(layer)
        consume(layer, x_TF.index_select(0, selected[0]), selected[1])
        if layer == layers[-1]:
            raise PassOverError

    dtype = next(loaded.model.parameters()).dtype
    with ExitStack() as stack:
        for layer in layers:
            tap = loaded.sites.tap(Place(layer, wanted.site))
            stack.callback(install(tap, Purpose.COPY, _Receiver(layer, receive), dtype))
        for group in plan_batches([len(ids) for ids in examples], budget):
            batch = make_batch(examples, group, loaded.device)
            selected = _selection(batch, wanted.tokens, wanted.skip)
            fired.clear()
            try:
                # Not the body alone: guards hook the model. The pass ends before its head.
                loaded.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False)
            except PassOverError:
                pass
            except torch.OutOfMemoryError as error:
                raise CalibrationError(_too_much(*batch.ids_BT.shape)) from error
            if fired != layers:
                raise AttachError(f"hooks ran at layers {fired}, wanted {layers} once each")
            advance(int(batch.mask_BT.sum()))
