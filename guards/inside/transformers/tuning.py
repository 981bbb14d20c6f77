"""Runs a model whose key-vector projections are movable, no further than a training needs.

Suffixes: B examples of a batch, T tokens, F feed-forward width, D residual width.

The frozen model is run once, without gradient, up to the last block that is looked at. On the way it is kept what every
block from the first moved one on was called with. With deltas, only those blocks are run again, from what the first of
them was given. Nothing above the last one is ever run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from guards.calibration.tuning import Example
from guards.errors import AttachError, CalibrationError
from guards.inside.transformers.capture import PassOverError, RunnableModel, make_batch
from guards.model.sites import Place, Site


@dataclass
class _Calls:
    """What blocks were called with in the pass of the frozen model, and what the wanted ones gave, by layer."""

    given: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    gave: dict[int, Tensor] = field(default_factory=dict)


def _first(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's arguments with another residual stream, which is its first one in every family."""
    return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})


class TunedModel:
    """See `guards.calibration.tuning.Tuned`. Made by `tuned`, which also takes the deltas off again."""

    def __init__(self, loaded: RunnableModel, layers: Sequence[int]) -> None:
        self._loaded, self._on = loaded, False
        self._first = min(layers)
        taps = {layer: loaded.sites.tap(Place(layer, Site.KEY)) for layer in layers}
        shape = loaded.sites.d_model, loaded.sites.d_ff
        self.deltas: Mapping[int, nn.Parameter] = {
            layer: nn.Parameter(torch.zeros(shape, device=loaded.device)) for layer in sorted(taps)
        }
        with ExitStack() as stack:
            for layer, tap in taps.items():
                stack.callback(tap.module.register_forward_hook(self._adds(self.deltas[layer])).remove)
            self._stack = stack.pop_all()

    def remove(self) -> None:
        """Takes the deltas off the model."""
        self._stack.close()

    def _adds(self, delta_DF: nn.Parameter) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            return output + functional.linear(args[0], delta_DF.to(output.dtype)) if self._on else None

        return hook

    def block(self, layer: int) -> nn.Module:
        """One block of the model."""
        return self._loaded.sites.tap(Place(layer, Site.RESIDUAL)).module

    @contextmanager
    def moved(self) -> Iterator[None]:
        """Inside, the deltas are on."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def open(self, layers: Sequence[int], examples: Sequence[Example]) -> "OpenedBatch":
        """See `Tuned`. Raises AttachError where the model does not run its blocks one after another."""
        blocks = range(self._first, max(layers) + 1)
        calls = _Calls()
        batch = make_batch([example.ids for example in examples], range(len(examples)), self._loaded.device)
        with ExitStack() as stack:
            for layer in blocks:
                stack.callback(self._keeps(layer, layer == blocks[-1], calls))
            try:
                with torch.no_grad():
                    self._loaded.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False)
            except PassOverError:
                pass
            except torch.OutOfMemoryError as error:
                raise _out_of_memory(batch.ids_BT.numel()) from error
        if list(calls.given) != list(blocks) or list(calls.gave) != list(blocks):
            raise AttachError(f"blocks {list(calls.given)} ran, wanted {list(blocks)} once each")
        width = batch.ids_BT.shape[1]
        flat = [row * width + at for row, (ids, first) in enumerate(examples) for at in range(first, len(ids))]
        return OpenedBatch(self, tuple(sorted(layers)), blocks, calls, torch.tensor(flat, device=self._loaded.device))

    def _keeps(self, layer: int, last: bool, calls: _Calls) -> Callable[[], None]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.given[layer] = args, kwargs

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            calls.gave[layer] = _first(output)
            if last:
                raise PassOverError

        block = self.block(layer)
        handles = block.register_forward_pre_hook(before, with_kwargs=True), block.register_forward_hook(after)

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove


@dataclass(frozen=True)
class OpenedBatch:
    """See `guards.calibration.tuning.Opened`."""

    tuned: TunedModel
    layers: tuple[int, ...]
    blocks: range
    calls: _Calls
    selected_T: Tensor

    @property
    def before(self) -> Mapping[int, Tensor]:
        """See `Opened`."""
        return {layer: self._selected(self.calls.gave[layer]) for layer in self.layers}

    def after(self) -> Mapping[int, Tensor]:
        """See `Opened`."""
        args, kwargs = self.calls.given[self.blocks[0]]
        hidden = args[0] if args else kwargs["hidden_states"]
        found = {}
        try:
            with self.tuned.moved():
                for layer in self.blocks:
                    args, kwargs = _with_hidden(*self.calls.given[layer], hidden)
                    hidden = _first(self.tuned.block(layer)(*args, **kwargs))
                    if layer in self.layers:
                        found[layer] = self._selected(hidden)
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(hidden.shape[0] * hidden.shape[1]) from error
        return found

    def _selected(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD.flatten(0, 1).index_select(0, self.selected_T)


def _out_of_memory(tokens: int) -> CalibrationError:
    return CalibrationError(f"out of memory with {tokens} tokens in a training batch: lower `batch` or `length`")


@contextmanager
def tuned(loaded: RunnableModel, layers: Sequence[int]) -> Iterator[TunedModel]:
    """A model with deltas at these layers' key-vector projections, by name. Raises UnsupportedModelError where a layer
    has none.
    """
    model = TunedModel(loaded, layers)
    try:
        yield model
    finally:
        model.remove()
