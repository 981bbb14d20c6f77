"""Where guards go in vLLM's model classes, and what is refused. No vLLM needed: its modules are imitated."""

from typing import Any

import pytest
from torch import nn
from transformers import LlamaConfig, MixtralConfig

from guards.errors import UnsupportedModelError
from guards.inside.vllm.sites import find_local_sites
from guards.model.sites import Form, Place, Site
from tests.guards.inside.vllm.imitation import D_ATTENTION, LlamaForCausalLM, PPMissingLayer

CONFIG = LlamaConfig(num_hidden_layers=3)


def test_every_block_is_found() -> None:
    sites = find_local_sites(LlamaForCausalLM(), CONFIG)
    assert sorted(sites.blocks) == [0, 1, 2]
    assert (sites.layers, sites.d_ff, sites.d_model) == (3, 24, 16)
    assert [sites.width(site) for site in Site] == [24, 24, 24, D_ATTENTION, 16]
    forms = {site: sites.tap(Place(1, site)).form for site in Site}
    assert forms == {
        Site.PRE_ACTIVATION: Form.FIRST_HALF,
        Site.KEY: Form.WHOLE,
        Site.OUTPUT: Form.WHOLE,
        Site.ATTENTION: Form.WHOLE,
        Site.RESIDUAL: Form.SUM,
    }


def test_blocks_of_other_stages_are_left_out() -> None:
    model = LlamaForCausalLM()
    model.model.layers[0] = PPMissingLayer()
    sites = find_local_sites(model, CONFIG)
    assert sorted(sites.blocks) == [1, 2]
    assert sites.layers == 3


class TransformersForCausalLM(LlamaForCausalLM):
    """What vLLM uses for families it has no class of its own for."""


def _without_down(model: Any) -> None:
    del model.model.layers[1].mlp.down_proj


def _odd_width(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.input_size = 20


def _hidden_width(model: Any) -> None:
    model.model.layers[1].mlp.down_proj = nn.Identity()


def _two_widths(model: Any) -> None:
    mlp = model.model.layers[1].mlp
    mlp.down_proj.input_size, mlp.gate_up_proj.output_size = 20, 40


def _hidden_attention(model: Any) -> None:
    model.model.layers[1].self_attn.o_proj = nn.Identity()


def _two_attention_widths(model: Any) -> None:
    model.model.layers[1].self_attn.o_proj.input_size = 12


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_hidden_attention, r"block 1: .*attention output projection of \(0, 0\) \(Identity\)"),
        (_two_attention_widths, r"block 1: got d_attention 12, wanted that of block 0 .*: 20"),
        (_without_down, r"lacks 1 expected module\(s\): model\.layers\.1\.mlp\.down_proj"),
        (_odd_width, r"block 1: got a pre-activation of width 24 and .* output projection of \(20, 16\)"),
        (_hidden_width, r"block 1: .*feed-forward output projection of \(0, 0\) .*Identity"),
        (_two_widths, "block 1: got d_ff 20, wanted that of block 0 .*: 24"),
    ],
)
def test_a_model_that_hides_its_sites_is_refused(spoil: Any, says: str) -> None:
    model = LlamaForCausalLM()
    spoil(model)
    with pytest.raises(UnsupportedModelError, match=says):
        find_local_sites(model, CONFIG)


def test_a_class_nobody_looked_at_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="TransformersForCausalLM, whose sites are not known"):
        find_local_sites(TransformersForCausalLM(), CONFIG)


def test_a_mixture_of_experts_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        find_local_sites(LlamaForCausalLM(), MixtralConfig())
