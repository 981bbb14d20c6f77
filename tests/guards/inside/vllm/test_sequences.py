"""Which rows are one sequence, and where its sums lie, read off vLLM's attention metadata."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from guards.contract.running import RunningStates
from guards.contract.slots import Sequences
from guards.errors import GuardReadingError
from guards.inside.vllm.sequences import finder, sequences_of, slots_of
from tests.guards.contract.running import extend, sequences
from tests.guards.contract.strategies import MEAN

BLOCK = 4
BLOCKS = torch.tensor([[7, 2, 0], [3, 9, 0], [5, 1, 8], [0, 0, 0]])
"""Blocks of three sequences, and a row that nobody uses."""


@dataclass(frozen=True)
class Metadata:
    """What is read of a layer's metadata."""

    query_start_loc: Tensor
    slot_mapping: Tensor
    block_table: Tensor


def slots(row: int, *positions: int) -> list[int]:
    """Cache slots of a sequence's positions."""
    return [int(BLOCKS[row, position // BLOCK]) * BLOCK + position % BLOCK for position in positions]


def metadata(**changes: Any) -> Metadata:
    """One sequence from its first token on, one new token at the start of a block, two in the middle of one."""
    values: dict[str, Any] = {
        "query_start_loc": torch.tensor([0, 3, 4, 6], dtype=torch.int32),
        "slot_mapping": torch.tensor([*slots(0, 0, 1, 2), *slots(1, 4), *slots(2, 9, 10)]),
        "block_table": BLOCKS.int(),
    }
    return Metadata(**{**values, **changes})


POSITIONS = torch.tensor([0, 1, 2, 4, 9, 10])


def found_in(layer: Metadata, positions_T: Tensor) -> Sequences:
    """The sequences of a pass whose every sequence is sound."""
    found = sequences_of(layer, positions_T, BLOCK)
    assert found.sound_S.all()
    return found


def test_slots_and_the_slot_before_each_sequences_first_new_token() -> None:
    found = found_in(metadata(), POSITIONS)
    assert found.bounds.tolist() == [0, 3, 4, 6]
    assert found.slots_T.tolist() == [28, 29, 30, 36, 33, 34]
    assert found.before_SH[:, -1].tolist() == [-1, *slots(1, 3), *slots(2, 8)]
    assert found.before_SH[:, -1].tolist() == [-1, 15, 32], "the last of the block before, or the one ahead in the same"


def test_padded_tokens_and_requests_are_no_sequence() -> None:
    """As of a replayed graph: the last bound is repeated, padded slots are -1, and positions are whatever was there."""
    padded = metadata(
        query_start_loc=torch.tensor([0, 3, 4, 6, 6]),
        slot_mapping=torch.tensor([*metadata().slot_mapping.tolist(), -1, -1]),
    )
    found = found_in(padded, torch.tensor([*POSITIONS.tolist(), 77, -3]))
    plain = found_in(metadata(), POSITIONS)
    assert found.bounds.tolist() == [*plain.bounds.tolist(), 6]
    assert found.slots_T.tolist() == [*plain.slots_T.tolist(), -1, -1]
    assert found.before_SH[:, -1][:3].tolist() == plain.before_SH[:, -1].tolist()


@pytest.mark.parametrize(("more", "slots_T"), [(2, [28, 29, 30, 36, 33, 34, -1, -1]), (-1, [28, 29, 30, 36, 33])])
def test_a_pass_of_another_length_than_its_slots(more: int, slots_T: list[int]) -> None:
    """The model is given more tokens than are cached where they fill up a size that was recorded."""
    found = sequences_of(metadata(), torch.tensor([*POSITIONS.tolist(), 0, 0])[: 6 + more], BLOCK)
    assert found.bounds.tolist() == [0, 3, 4, 6]
    assert found.slots_T.tolist() == slots_T


def test_a_request_without_new_tokens_is_passed_over() -> None:
    bounds = torch.tensor([0, 3, 3, 5])
    slot_mapping = torch.tensor([*slots(0, 0, 1, 2), *slots(2, 9, 10)])
    found = found_in(metadata(query_start_loc=bounds, slot_mapping=slot_mapping), torch.tensor([0, 1, 2, 9, 10]))
    assert found.bounds.tolist() == [0, 3, 3, 5]
    assert found.before_SH[:, -1][[0, 2]].tolist() == [-1, 32]


def test_a_pass_that_caches_no_token_has_no_sound_sequence() -> None:
    nowhere = metadata(slot_mapping=torch.full((6,), -1))
    assert not sequences_of(nowhere, POSITIONS, BLOCK).sound_S.any()


@pytest.mark.parametrize(
    ("block", "changes", "sound"),
    [
        (8, {}, [False] * 3),
        (BLOCK, {"block_table": BLOCKS.flip(0)[1:]}, [False, True, False]),
        (BLOCK, {"block_table": BLOCKS[:, :2]}, [True, True, False]),
        (BLOCK, {"slot_mapping": torch.tensor([28, 29, 30, 37, 33, 34])}, [True, False, True]),
        (BLOCK, {"slot_mapping": torch.tensor([28, 29, 30, -1, 33, 34])}, [True, False, True]),
        (BLOCK, {"slot_mapping": torch.tensor([28, 29, 30, 36, 33, -1])}, [True, True, False]),
        (BLOCK, {"slot_mapping": torch.tensor([28, 29, 30, 36, 33])}, [True, True, False]),
    ],
    ids=[
        "blocks of another size",
        "blocks of another sequence",
        "too few blocks",
        "another slot",
        "a token that is not kept",
        "a last token that is not kept",
        "too few slots",
    ],
)
def test_blocks_and_slots_that_disagree_are_not_finite(block: int, changes: dict[str, Any], sound: list[bool]) -> None:
    found = sequences_of(metadata(**changes), POSITIONS, block)
    assert found.sound_S.tolist() == sound
    store = RunningStates([MEAN], torch.device("cpu"))
    before_T = torch.arange(40)
    bounds = torch.tensor([0, 40])
    extend(store, torch.ones(40, 1), before_T, sequences(bounds, before_T, [-1]))
    read = extend(store, torch.ones(6, 1), POSITIONS, found)[:, 0]
    wanted_T = torch.tensor(sound).repeat_interleave(torch.tensor([3, 1, 2]))
    assert torch.isfinite(read).tolist() == wanted_T.tolist(), "whatever an earlier pass left in the slots"


def test_a_sequence_without_a_row_of_blocks_is_an_error() -> None:
    with pytest.raises(GuardReadingError, match=r"block table \[2, 3\] for 3 sequences"):
        sequences_of(metadata(block_table=BLOCKS[:2]), POSITIONS, BLOCK)


def group(*layers: str, block: int = BLOCK) -> Any:
    """Layers that share block tables."""
    return SimpleNamespace(layer_names=list(layers), kv_cache_spec=SimpleNamespace(block_size=block))


ONE_GROUP = (group("layers.0", "layers.1"),)


def states(*layers: str) -> Any:
    """Layers that keep one state a sequence, in blocks as long as the context."""
    return SimpleNamespace(layer_names=list(layers), kv_cache_spec=SimpleNamespace(block_size=4096, mamba_type="gdn"))


def in_a_pass(
    monkeypatch: pytest.MonkeyPatch, attention: Any, groups: tuple[Any, ...] = ONE_GROUP, *, prefixes: bool = True
) -> Any:
    """A finder on a runner with these cache groups, in a pass with that attention metadata."""
    import sys

    context = SimpleNamespace(get_forward_context=lambda: SimpleNamespace(attn_metadata=attention))
    monkeypatch.setitem(sys.modules, "vllm.forward_context", context)
    runner = SimpleNamespace(
        kv_cache_config=SimpleNamespace(kv_cache_groups=groups),
        input_batch=SimpleNamespace(block_table=[SimpleNamespace(block_size=BLOCK)] * len(groups)),
        cache_config=SimpleNamespace(enable_prefix_caching=prefixes),
    )
    return finder(runner)


def test_the_pass_says_which_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    found = in_a_pass(monkeypatch, {"layers.0": metadata(), "layers.1": None})(POSITIONS)
    assert found.slots_T.tolist() == [28, 29, 30, 36, 33, 34]
    assert in_a_pass(monkeypatch, None)(POSITIONS) is None, "by which vLLM warms up"
    with pytest.raises(GuardReadingError, match="micro-batches"):
        in_a_pass(monkeypatch, [{"layers.0": metadata()}])(POSITIONS)
    with pytest.raises(KeyError):
        in_a_pass(monkeypatch, {"layers.1": metadata()})(POSITIONS)


@pytest.mark.parametrize("groups", [(group("layers.0"), group("layers.1", block=2 * BLOCK)), (group(), *ONE_GROUP)])
def test_groups_whose_blocks_are_not_alike_are_an_error(monkeypatch: pytest.MonkeyPatch, groups: Any) -> None:
    """A prefix may then be found in part of a block, which vLLM copies without the sums."""
    with pytest.raises(GuardReadingError, match="cache's groups"):
        in_a_pass(monkeypatch, {"layers.0": metadata()}, groups)(POSITIONS)


def test_layers_that_keep_a_state_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their blocks are no tokens' slots. Where prefixes are shared, one might end in part of a block."""
    groups = (states("layers.0"), group("layers.1"), group("layers.2", block=2 * BLOCK))
    given = {"layers.0": None, "layers.1": metadata(), "layers.2": None}
    found = in_a_pass(monkeypatch, given, groups, prefixes=False)(POSITIONS)
    assert found.slots_T.tolist() == [28, 29, 30, 36, 33, 34]
    with pytest.raises(GuardReadingError, match=r"blocks of .* tokens: .*switch prefix caching off"):
        in_a_pass(monkeypatch, given, groups)(POSITIONS)
    with pytest.raises(GuardReadingError, match="no layer of the first"):
        in_a_pass(monkeypatch, given, groups[:1], prefixes=False)(POSITIONS)
    assert slots_of(SimpleNamespace(num_blocks=10, kv_cache_groups=groups)) == 10 * BLOCK
    assert slots_of(SimpleNamespace(num_blocks=10, kv_cache_groups=groups[:1])) == 0


def test_slots_of_a_cache() -> None:
    cache = SimpleNamespace(num_blocks=10, kv_cache_groups=[group("layers.0")])
    assert slots_of(cache) == 10 * BLOCK
    assert slots_of(SimpleNamespace(num_blocks=10, kv_cache_groups=[])) == 0
