"""Where sites are in each family of models: one table for each backend. What is not here is refused."""

from collections.abc import Mapping
from dataclasses import replace

from guards.model.sites import Family, Form, Path, Site


def _family(block: str, pre_activation: str, key: str, attention: str) -> Family:
    paths = {Site.PRE_ACTIVATION: pre_activation, Site.KEY: key, Site.ATTENTION: attention, Site.RESIDUAL: ""}
    return Family(block, {site: Path(module) for site, module in paths.items()})


def _formed(family: Family, **forms: Form) -> Family:
    """The family with sites in another form, by their names."""
    paths = {site: path._replace(form=forms.get(site.value, path.form)) for site, path in family.paths.items()}
    return replace(family, paths=paths)


_GATED = _family("model.layers.{layer}", "mlp.gate_proj", "mlp.down_proj", "self_attn.o_proj")
_FUSED = _formed(
    _family("model.layers.{layer}", "mlp.gate_up_proj", "mlp.down_proj", "self_attn.o_proj"),
    pre_activation=Form.FIRST_HALF,
)
_OPT = _family("model.decoder.layers.{layer}", "fc1", "fc2", "self_attn.out_proj")
_GPT2 = _family("transformer.h.{layer}", "mlp.c_fc", "mlp.c_proj", "attn.c_proj")
_NEOX = _family("gpt_neox.layers.{layer}", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "attention.dense")

FAMILIES: Mapping[str, Family] = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "gemma": _GATED,
    "gemma2": _GATED,
    "gemma3_text": _GATED,
    "olmo2": _GATED,
    "olmo3": _GATED,
    "phi3": _FUSED,
    "opt": _OPT,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
}
"""transformers' `config.model_type` -> where its sites are."""

# vLLM merges gate and up, on each rank of its own slices, and hands the residual stream on in two tensors.
_VLLM_GATED = _formed(_FUSED, residual=Form.SUM)

VLLM_FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": _VLLM_GATED,
    "MistralForCausalLM": _VLLM_GATED,
    "Qwen2ForCausalLM": _VLLM_GATED,
    "Qwen3ForCausalLM": _VLLM_GATED,
    "GemmaForCausalLM": _VLLM_GATED,
    "Gemma2ForCausalLM": _VLLM_GATED,
    "Gemma3ForCausalLM": _VLLM_GATED,
    "Phi3ForCausalLM": _VLLM_GATED,
    "OPTForCausalLM": _OPT,
    "GPT2LMHeadModel": _GPT2,
}
"""vLLM's model class -> where its sites are."""
