"""A model without what a method reads is refused by name before anything is run; the residual stream is in all."""

from typing import Any

import pytest

from guards.calibration.entry import Entry
from guards.core.verdict import Reading
from guards.errors import UnsupportedModelError
from guards.methods.registry import CUBE, NEURON_ADJUST, SELECTIVE_PRUNING, SPANS
from guards.methods.selective_pruning.options import PruningOptions
from guards.methods.spans.guard import SpanGuard
from guards.methods.spans.options import SpanOptions
from guards.model.sites import Site
from tests.guards.tiny import sources, sums, tiny_loaded, words

GEMMA = {"global_head_dim": 8, "num_kv_shared_layers": 1, "use_double_wide_mlp": True}


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("entry", [CUBE, NEURON_ADJUST, SELECTIVE_PRUNING, SPANS], ids=lambda each: each.package)
def test_methods_that_need_a_key_vector_refuse_experts(kind: str, entry: Entry) -> None:
    loaded = tiny_loaded(kind)
    with pytest.raises(UnsupportedModelError, match=r"first layer [01]: .*mixture of experts \(mlp.experts\)"):
        entry.calibrate(loaded, *sources(40))


@pytest.mark.parametrize("entry", [CUBE, NEURON_ADJUST, SELECTIVE_PRUNING], ids=lambda each: each.package)
def test_methods_over_all_layers_refuse_a_model_that_is_dense_in_some(entry: Entry) -> None:
    with pytest.raises(UnsupportedModelError, match=r"2 of the layers .* first layer 1"):
        entry.calibrate(tiny_loaded("glm4_moe"), *sources(40))


def test_pruning_needs_attention_only_where_it_prunes_it() -> None:
    loaded = tiny_loaded("lfm2")
    options: dict[str, Any] = {"frames": ("bare",), "fraction": 0.1, "steps": 1}
    with pytest.raises(UnsupportedModelError, match="no attention site, first layer 0: it mixes tokens without"):
        SELECTIVE_PRUNING.calibrate(loaded, *sources(40), PruningOptions(**options, attention_fraction=0.1))
    SELECTIVE_PRUNING.calibrate(loaded, *sources(40), PruningOptions(**options, attention_fraction=0.0))


def _spans(kind: str, changes: dict[str, Any], **options: Any) -> SpanGuard:
    """A guard over spans that tells sums from words."""
    loaded = tiny_loaded(kind, **changes)
    few: dict[str, Any] = {
        "frames": ("bare",),
        "material": "none",
        "answers": 0,
        "longest": 40,
        "recall": 0.9,
    } | options
    guard = SPANS.calibrate(loaded, *sources(120), SpanOptions(**few, max_false_abstention=0.1)).guard
    assert isinstance(guard, SpanGuard)
    with loaded.reading(SPANS, guard) as read:
        fired = [
            sum(read(loaded.codec.encode_frame("bare", text))[0] is Reading.INSIDE for text in texts) / 40
            for texts in (sums(160)[120:], words(160)[120:])
        ]
    assert fired[0] > fired[1] + 0.5
    return guard


def test_the_residual_stream_of_experts_is_calibrated() -> None:
    guard = _spans("qwen3_moe", {}, site="residual")
    assert guard.site is Site.RESIDUAL
    assert {len(term.weight_F) for term in guard.terms} == {16}


def test_a_layer_that_is_dense_can_be_named() -> None:
    guard = _spans("glm4_moe", {}, layer=0)
    assert (guard.site, guard.layers) == (Site.KEY, (0,))
    with pytest.raises(UnsupportedModelError, match=r"first layer 1: .*mixture of experts"):
        _spans("glm4_moe", {}, layer=1)


def test_layers_of_another_width_are_left_out() -> None:
    """Gemma 4: the last layer's network is twice as wide."""
    assert 2 not in _spans("gemma4_text", GEMMA).layers
