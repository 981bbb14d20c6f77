"""Guards over spans on a transformers model: states over the sequences of a pass, whole or packed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from guards.calibration.accumulated import read_texts, turns_of
from guards.contract.running import RunningStates
from guards.core.verdict import Reading
from guards.errors import GuardReadingError
from guards.inside.transformers.sequences import find_sequences, slots_of
from tests.guards.attached import attach, hooks, keys, read
from tests.guards.contract.running import extend, sequences
from tests.guards.contract.strategies import MEAN
from tests.guards.samples import JUDGEMENTS, cubes, spans
from tests.models import tiny_model

IDS = torch.tensor([[5, 9, 30, 2, 17, 8]])


def expected(model: Any, ids: Tensor) -> Tensor:
    """Scores after every token, float32 [T, parts], from keys that the test's own hook read."""
    value_T = torch.stack([keys(model, ids, term.layer) @ term.weight_F - term.offset for term in spans().terms]).sum(0)
    turns = turns_of(tuple(ids.flatten().tolist()), ())
    (read_TP,) = read_texts([value_T], [turns], [each.over_tokens for each in JUDGEMENTS])
    return read_TP


def cache(*kinds: str, pages: int = 1) -> Any:
    """A paged cache, as far as its groups' kinds of layers go, and its room: 200 rows, 400 in the next group.

    Pages are of 4 tokens, and of each block there are so many.
    """
    groups = {
        f"group {i}": SimpleNamespace(
            layer_type=kind,
            cache_tensor=torch.empty(100 * (i + 1), 2, 1, 4),
            tokens_per_page=4,
            block_physical_stride=4 * pages,
        )
        for i, kind in enumerate(kinds)
    }
    return SimpleNamespace(cache_allocators=groups)


def packed(past: int, **changes: Any) -> dict[str, Any]:
    """Arguments of a pass that goes on with one sequence after `past` tokens at slots from 64 on."""
    new = IDS.shape[1] - past
    read_index = [torch.arange(64, 64 + past + new)] if past else [torch.tensor([], dtype=torch.int64)]
    return {
        "cache": cache("full_attention"),
        "position_ids": torch.arange(past, past + new)[None],
        "cu_seq_lens_q": torch.tensor([0, new], dtype=torch.int32),
        "cu_seq_lens_k": {"full_attention": torch.tensor([0, past + new], dtype=torch.int32)},
        "write_index": [torch.arange(64 + past, 64 + past + new)],
        "read_index": read_index,
        **changes,
    }


@torch.no_grad()
def test_rows_of_a_batch_are_sequences() -> None:
    model = tiny_model("llama")
    wanted = torch.cat([expected(model, IDS), expected(model, IDS.flip(1))])
    with attach(model, spans=spans(), cube=cubes()) as attachment:
        got = read(model, attachment, torch.cat([IDS, IDS.flip(1)])).scores["spans"]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert hooks(model) == 0


@pytest.mark.parametrize("full", [False, True])
def test_a_packed_pass_says_where_each_sequence_goes_on(full: bool) -> None:
    """One sequence after two tokens, one new, one after five of which a window holds the last three.

    Lengths come full attention first, indices in the order of the groups: the window's first here.
    """
    window = torch.tensor([10, 11, 12, 13, 40, 41, 42, 72, 73, 74, 1])
    whole = torch.tensor([110, 111, 112, 113, 140, 141, 142, 170, 171, 172, 173, 174, 175])
    kwargs = {
        "cache": cache("sliding_attention", *(["full_attention"] if full else [])),
        "cu_seq_lens_q": torch.tensor([0, 2, 5, 6], dtype=torch.int32),
        "cu_seq_lens_k": {
            "full_attention": torch.tensor([0, 4, 7, 13], dtype=torch.int32),
            "sliding_attention": torch.tensor([0, 4, 7, 11], dtype=torch.int32),
        },
        "write_index": [torch.tensor([12, 13, 40, 41, 42, 75]), torch.tensor([112, 113, 140, 141, 142, 175])],
        "read_index": [window, whole],
    }
    found = find_sequences(kwargs, torch.tensor([[2, 3, 0, 1, 2, 5]]))
    assert found.bounds.tolist() == [0, 2, 5, 6]
    assert found.sound_S.all()
    assert slots_of(kwargs) == (400 if full else 200)
    shift = 100 if full else 0
    assert found.slots_T.tolist() == [slot + shift for slot in (12, 13, 40, 41, 42, 75)]
    assert found.before_SH[:, -1].tolist() == [11 + shift, -1, 74 + shift]


def test_slots_count_tokens_whatever_lies_between_them() -> None:
    """Blocks of 10 pages: of five layers' keys and values. Tokens of the second and the fourth block, one behind."""
    kwargs: dict[str, Any] = {
        "cache": cache("full_attention", pages=10),
        "cu_seq_lens_q": torch.tensor([0, 2], dtype=torch.int32),
        "cu_seq_lens_k": {"full_attention": torch.tensor([0, 5], dtype=torch.int32)},
        "write_index": [torch.tensor([43, 120])],
        "read_index": [torch.tensor([40, 41, 42, 43, 120])],
    }
    found = find_sequences(kwargs, torch.tensor([[3, 4]]))
    assert slots_of(kwargs) == 20, "200 rows are five blocks of four tokens"
    assert (found.slots_T.tolist(), found.before_SH[0, -3:].tolist()) == ([7, 12], [4, 5, 6])
    assert found.sound_S.tolist() == [True]
    elsewhere = {**kwargs, "read_index": [torch.tensor([40, 41, 44, 43, 120])]}
    assert find_sequences(elsewhere, torch.tensor([[3, 4]])).sound_S.tolist() == [False], "in the second page"


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"block_table": torch.zeros(1, 1)}, "without cache indices"),
        ({"write_index": []}, "without cache indices"),
        ({"write_index": [torch.arange(3)]}, "got 3 slots to write for 4 tokens"),
    ],
)
def test_a_pass_that_cannot_be_followed_is_an_error(changes: dict[str, Any], complaint: str) -> None:
    model = tiny_model("llama")
    with attach(model, spans=spans()) as attachment, pytest.raises(GuardReadingError, match=complaint):
        attachment._begin(model, (), {"input_ids": IDS[:, 2:], **packed(2, **changes)})


@pytest.mark.parametrize(
    "changes",
    [
        {"read_index": [torch.arange(5)]},
        {"read_index": [torch.tensor([], dtype=torch.int64)]},
        {"cu_seq_lens_q": torch.tensor([0, 3])},
        {"cu_seq_lens_k": {"full_attention": torch.tensor([0, 5])}},
    ],
    ids=["slots of another text", "no slots to read", "a token of no sequence", "another length"],
)
def test_a_pass_whose_slots_disagree_is_not_finite(changes: dict[str, Any]) -> None:
    """Its slots hold what an earlier pass left there, which is what another sequence's would be taken for."""
    store, at_T = RunningStates([MEAN], torch.device("cpu")), torch.arange(200)
    bounds, values_T1 = torch.tensor([0, 200]), torch.ones(4, 1)
    extend(store, torch.ones(200, 1), at_T, sequences(bounds, at_T, [-1]))
    for kwargs, finite in ((packed(2, **changes), False), (packed(2), True)):
        found = find_sequences(kwargs, kwargs["position_ids"])
        assert torch.isfinite(extend(store, values_T1, kwargs["position_ids"][0], found)).tolist() == [[finite]] * 4


def test_a_row_that_does_not_begin_at_its_first_token_is_not_sound() -> None:
    found = find_sequences({}, torch.tensor([[0, 1, 2], [1, 2, 3], [0, 1, 1]]))
    assert found.bounds.tolist() == [0, 3, 6, 9]
    assert found.sound_S.tolist() == [True, False, False]


@torch.no_grad()
def test_a_cache_of_no_known_slots_is_an_error() -> None:
    model = tiny_model("llama")
    cache = model(input_ids=IDS, use_cache=True).past_key_values
    with attach(model, spans=spans()), pytest.raises(GuardReadingError, match="use continuous batching"):
        model(input_ids=IDS, past_key_values=cache, use_cache=True)


@torch.no_grad()
def test_a_layer_that_was_not_heard_of_is_missing() -> None:
    model = tiny_model("llama")
    with attach(model, spans=spans()) as attachment:
        module: Any = model.model.layers[1].mlp.down_proj
        module._forward_pre_hooks.clear()
        readings = read(model, attachment, IDS)
    assert set(readings.codes_RG[:, 0].tolist()) == {int(Reading.MISSING)}
