"""Following sequences never waits for the device: what would is refused here, on a CPU, where it costs nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from guards.contract.accumulate import TOKEN
from guards.contract.running import RunningStates
from guards.contract.slots import Sequences, link
from guards.contract.spans import MessageMean, Rise
from guards.contract.turn_finder import TurnFinder
from guards.inside.transformers.sequences import find_sequences
from guards.inside.vllm.sequences import sequences_of
from guards.model.openings import Opening
from tests.guards.contract.running import extend
from tests.guards.contract.strategies import LEAST, MEAN, Cusum

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense,  # int(), bool(), item(), tolist(), a tensor as a bound of a slice
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten.unique_dim,
    aten._unique2,
    aten.bincount,
    aten.repeat_interleave,
    aten.lift_fresh,  # torch.tensor([...]): the device would wait for the host's numbers
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class _NothingRead(TorchFunctionMode):
    """Refuses what reads a CPU tensor's memory, of which no operation is dispatched."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class _NothingWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses every operation whose result, or its size, the host would have to wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func.overloadpacket
        masks = [index for index in args[1] if index is not None] if operation in INDEXING else []
        if operation in WAITS or any(mask.dtype in (torch.bool, torch.uint8) for mask in masks):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Refuses both within."""
    with _NothingRead(), _NothingWaits():  # type: ignore[no-untyped-call]
        yield


def in_shape(tokens: int) -> Sequences:
    """A sequence of two tokens, one that goes on from it, an empty one, one from a slot, and the rest padding."""
    return Sequences(
        torch.tensor([0, 2, 3, 3, 4]),
        torch.tensor([4, 5, 6, 7, *[-1] * (tokens - 4)]),
        torch.tensor([[-1] * 16, [*[-1] * 14, 4, 5], [-1] * 16, [*[-1] * 15, 9]]),
        torch.ones(4, dtype=torch.bool),
    )


@pytest.mark.parametrize(
    "strategies",
    [
        [MEAN],
        [LEAST, MEAN, TOKEN, Cusum(0.5), LEAST],
        [TOKEN],
        [Rise(0.5, False), Rise(0.5, True), MessageMean(2, False)],
    ],
)
def test_states_go_on_without_waiting(strategies: Any) -> None:
    """Without growing, which CPUs alone may do: all else is the same code on every device."""
    cpu = torch.device("cpu")
    store, finder = RunningStates(strategies, cpu), TurnFinder([Opening((1, 2, 3), 2, True)], cpu)
    store.reserve(10)
    finder.reserve(10)
    values_TC, positions_T = torch.ones(6, len(strategies)), torch.tensor([0, 1, 2, 3, 0, 0])
    found = in_shape(6)
    with nothing_waits():
        links = link(positions_T, found, looks=False)
        got = store.extend(values_TC, links, finder.find(positions_T, links))
        store.nothing(values_TC)
    kept = [bool(strategy.width) for strategy in strategies]
    assert got.isnan().tolist() == [[False] * len(kept)] * 3 + [kept] * 3


def test_sequences_are_found_without_waiting() -> None:
    layer = SimpleNamespace(
        query_start_loc=torch.tensor([0, 2, 3, 3], dtype=torch.int32),
        slot_mapping=torch.tensor([4, 5, 10]),
        block_table=torch.tensor([[1, 0], [0, 2], [0, 0]], dtype=torch.int32),
    )
    group = SimpleNamespace(layer_type="full_attention", tokens_per_page=4, block_physical_stride=4)
    packed: dict[str, Any] = {
        "cache": SimpleNamespace(cache_allocators={"full": group}),
        "cu_seq_lens_q": torch.tensor([0, 2, 4], dtype=torch.int32),
        "cu_seq_lens_k": {"full_attention": torch.tensor([0, 2, 8], dtype=torch.int32)},
        "write_index": [torch.tensor([4, 5, 12, 13])],
        "read_index": [torch.tensor([4, 5, 8, 9, 10, 11, 12, 13])],
    }
    unread = {**packed, "read_index": [torch.tensor([], dtype=torch.int64)]}
    positions_T = torch.tensor([0, 1, 6, 0])
    packed_1T, whole_BT = torch.tensor([[0, 1, 4, 5]], dtype=torch.int32), torch.tensor([[0, 1], [0, 2]])
    with nothing_waits():
        on_vllm = sequences_of(layer, positions_T, 4)
        on_transformers = [find_sequences(kwargs, packed_1T) for kwargs in (packed, unread)]
        whole = find_sequences({}, whole_BT)
    assert on_vllm.sound_S.tolist() == [True] * 3
    assert [found.sound_S.tolist() for found in on_transformers] == [[True, True], [True, False]]
    assert whole.sound_S.tolist() == [True, False]


def _assigned(x: Tensor) -> None:
    x[x > 1] = 0


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: int(x.max()),
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x[: x[0].int()],
        lambda x: x[x > 1],
        _assigned,
        lambda x: torch.equal(x, x),
        lambda x: x.nonzero(),
        lambda x: torch.unique(x),
        lambda x: torch.tensor([1, 2]),
    ],
)
def test_what_waits_is_refused(waits: Callable[[Tensor], Any]) -> None:
    """Positive control."""
    x = torch.tensor([1.0, 2.0])
    with nothing_waits(), pytest.raises(AssertionError, match="waits for the device"):
        waits(x)


def test_growing_is_what_waits() -> None:
    """Positive control: by default on a CPU the largest slot is looked at."""
    store, found = RunningStates([MEAN], torch.device("cpu")), in_shape(4)
    with nothing_waits(), pytest.raises(AssertionError, match="waits for the device"):
        extend(store, torch.ones(4, 1), torch.arange(4), found)
