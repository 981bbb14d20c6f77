"""Where sites are in each family of models: one table for each backend. What is not here is refused."""

from collections.abc import Mapping
from dataclasses import replace

from guards.model.sites import Family, Form, Instead, Path, Site, Width


def _family(block: str, pre_activation: str, key: str, attention: str) -> Family:
    feed_forward = {Site.PRE_ACTIVATION: pre_activation, Site.KEY: key, Site.OUTPUT: key}
    paths = {**feed_forward, Site.ATTENTION: attention, Site.RESIDUAL: ""}
    return Family(block, {site: Path(module) for site, module in paths.items()})


def _formed(family: Family, **forms: Form) -> Family:
    """The family with sites in another form, by their names."""
    paths = {site: path._replace(form=forms.get(site.value, path.form)) for site, path in family.paths.items()}
    return replace(family, paths=paths)


def _instead(family: Family, module: str, what: str, *sites: Site) -> Family:
    """The family with blocks that have a module in the place of some sites."""
    return replace(family, instead={**family.instead, module: Instead(frozenset(sites), what)})


def _experts(family: Family, module: str) -> Family:
    """The family with experts in some or all blocks."""
    of_network = Site.PRE_ACTIVATION, Site.KEY, Site.OUTPUT
    return _instead(family, module, "its feed-forward network is a mixture of experts", *of_network)


def _mixing(family: Family, module: str) -> Family:
    """The family with blocks that mix tokens without attention."""
    return _instead(family, module, "it mixes tokens without attention", Site.ATTENTION)


_GATED = _family("model.layers.{layer}", "mlp.gate_proj", "mlp.down_proj", "self_attn.o_proj")
_FUSED = _formed(
    _family("model.layers.{layer}", "mlp.gate_up_proj", "mlp.down_proj", "self_attn.o_proj"),
    pre_activation=Form.FIRST_HALF,
)
_OPT = _family("model.decoder.layers.{layer}", "fc1", "fc2", "self_attn.out_proj")
_GPT2 = _family("transformer.h.{layer}", "mlp.c_fc", "mlp.c_proj", "attn.c_proj")
_NEOX = _family("gpt_neox.layers.{layer}", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "attention.dense")
_LFM2 = _family("model.layers.{layer}", "feed_forward.w1", "feed_forward.w2", "self_attn.out_proj")
# Granite 4: every block has a dense network, beside experts in some models.
_GRANITE4 = _experts(
    _mixing(
        _formed(
            _family("model.layers.{layer}", "shared_mlp.input_linear", "shared_mlp.output_linear", "self_attn.o_proj"),
            pre_activation=Form.FIRST_HALF,
        ),
        "mamba",
    ),
    "block_sparse_moe",
)
# Gemma 4: heads are wider where attention is full, and networks twice as wide where layers share keys and values.
_VARYING = frozenset({Width.D_FF, Width.D_ATTENTION})

FAMILIES: Mapping[str, Family] = {
    "llama": _GATED,
    "mistral": _GATED,
    "ministral": _GATED,
    "ministral3": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "qwen3_5_text": _mixing(_GATED, "linear_attn"),
    "gemma": _GATED,
    "gemma2": _GATED,
    "gemma3_text": _GATED,
    "gemma4_text": _experts(replace(_GATED, varies=_VARYING), "experts"),
    "smollm3": _GATED,
    "granite": _GATED,
    "granitemoehybrid": _GRANITE4,
    "glm": _FUSED,
    "glm4": _FUSED,
    "lfm2": _mixing(_LFM2, "conv"),
    "olmo2": _GATED,
    "olmo3": _GATED,
    "phi3": _FUSED,
    "opt": _OPT,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "mixtral": _experts(_GATED, "mlp.experts"),
    "qwen2_moe": _experts(_GATED, "mlp.experts"),
    "qwen3_moe": _experts(_GATED, "mlp.experts"),
    "olmoe": _experts(_GATED, "mlp.experts"),
    "qwen3_5_moe_text": _experts(_mixing(_GATED, "linear_attn"), "mlp.experts"),
    "gpt_oss": _experts(_GATED, "mlp.experts"),
    "glm4_moe": _experts(_GATED, "mlp.experts"),
}
"""transformers' `config.model_type` -> where its sites are."""

# vLLM merges gate and up, on each rank of its own slices, and hands the residual stream on in two tensors.
_VLLM_GATED = _formed(_FUSED, residual=Form.SUM)

VLLM_FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": _VLLM_GATED,
    "MistralForCausalLM": _VLLM_GATED,
    "Qwen2ForCausalLM": _VLLM_GATED,
    "Qwen3ForCausalLM": _VLLM_GATED,
    "Qwen3_5ForCausalLM": _mixing(_VLLM_GATED, "linear_attn"),
    "Qwen3_5MoeForCausalLM": _experts(_mixing(_VLLM_GATED, "linear_attn"), "mlp.experts"),
    "GemmaForCausalLM": _VLLM_GATED,
    "Gemma2ForCausalLM": _VLLM_GATED,
    "Gemma3ForCausalLM": _VLLM_GATED,
    "Gemma4ForCausalLM": _experts(replace(_FUSED, varies=_VARYING), "experts"),
    "GraniteForCausalLM": _FUSED,
    "GraniteMoeHybridForCausalLM": _GRANITE4,
    "Glm4ForCausalLM": _VLLM_GATED,
    "Lfm2ForCausalLM": _mixing(
        _formed(
            _family("model.layers.{layer}", "feed_forward.w13", "feed_forward.w2", "self_attn.out_proj"),
            pre_activation=Form.FIRST_HALF,
            residual=Form.SUM,
        ),
        "short_conv",
    ),
    "Phi3ForCausalLM": _VLLM_GATED,
    "OPTForCausalLM": _OPT,
    "GPT2LMHeadModel": _GPT2,
    "MixtralForCausalLM": _experts(_VLLM_GATED, "block_sparse_moe"),
    "Qwen2MoeForCausalLM": _experts(_VLLM_GATED, "mlp.experts"),
    "Qwen3MoeForCausalLM": _experts(_VLLM_GATED, "mlp.experts"),
    "OlmoeForCausalLM": _experts(_VLLM_GATED, "mlp.experts"),
    "GptOssForCausalLM": _experts(
        _formed(_family("model.layers.{layer}", "mlp.gate_up_proj", "mlp.down_proj", "attn.o_proj"), residual=Form.SUM),
        "mlp.experts",
    ),
    "Glm4MoeForCausalLM": _experts(_VLLM_GATED, "mlp.experts"),
}
"""vLLM's model class -> where its sites are. Some hand the residual stream on whole, beside another tensor or none."""

VLLM_WRAPPERS: Mapping[str, str] = {
    "Gemma3ForConditionalGeneration": "language_model",
    "Gemma4ForConditionalGeneration": "language_model",
    "Mistral3ForConditionalGeneration": "language_model",
    "Qwen3_5ForConditionalGeneration": "language_model",
    "Qwen3_5MoeForConditionalGeneration": "language_model",
}
"""vLLM's classes of models that also see -> the name of the text model in them, which is one of VLLM_FAMILIES."""

WRAPPERS: frozenset[str] = frozenset({"gemma3", "gemma4", "mistral3", "qwen3_5", "qwen3_5_moe"})
"""transformers' `config.model_type` of models that also see, of which the text model alone is loaded."""

TEXT_WEIGHTS: Mapping[str, str] = {
    r"^(model\.)?language_model\.(model\.)?(?!lm_head)": "model.",
    r"^language_model\.lm_head": "lm_head",
}
"""Names of a text model's weights among those of a wrapper -> its own, as regular expressions."""
