"""Tiny random-weight models of every family, built from their configurations; no file, no network."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 64
D_MODEL = 16
D_FF = 24
LAYERS = 3

_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 64,
}
_ROTARY: Mapping[str, Any] = {
    **_COMMON,
    "hidden_size": D_MODEL,
    "intermediate_size": D_FF,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
_GROUPED: Mapping[str, Any] = {**_ROTARY, "num_key_value_heads": 2}
_HEADED: Mapping[str, Any] = {**_GROUPED, "head_dim": 4}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _HEADED,
    "gemma": _HEADED,
    "gemma2": _HEADED,
    "gemma3_text": _HEADED,
    "olmo2": _GROUPED,
    "olmo3": _GROUPED,
    "phi3": _GROUPED,
    "opt": {
        **_COMMON,
        "hidden_size": D_MODEL,
        "ffn_dim": D_FF,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "word_embed_proj_dim": D_MODEL,
    },
    "gpt2": {
        **_COMMON,
        "n_embd": D_MODEL,
        "n_inner": D_FF,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": 64,
    },
    "gpt_neox": _ROTARY,
    "ministral": {**_HEADED, "sliding_window": 64},
    "ministral3": {
        **_HEADED,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "smollm3": _GROUPED,
    "granite": {**_GROUPED, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "granitemoehybrid": {
        **_GROUPED,
        "num_local_experts": 0,
        "shared_intermediate_size": D_FF,
        "layer_types": ["full_attention"] * LAYERS,
        "position_embedding_type": "rope",
        "mamba_n_heads": 8,
    },
    "glm": _HEADED,
    "glm4": _HEADED,
    "gemma4_text": {
        **_HEADED,
        "global_head_dim": 4,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 4,
        "num_kv_shared_layers": 0,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    "lfm2": {**_GROUPED, "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention", "conv"]},
    "qwen3_5_text": {
        **_HEADED,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
}
"""model_type -> the arguments of its configuration, of dense models."""

RECURRENT = frozenset({"lfm2", "qwen3_5_moe_text", "qwen3_5_text"})
"""Families with layers that keep a state, which transformers' continuous batching does not hold."""

_EXPERTS: Mapping[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}

EXPERTS: Mapping[str, Mapping[str, Any]] = {
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "qwen2_moe": {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 8},
    "qwen3_moe": {**_HEADED, **_EXPERTS},
    "olmoe": {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_5_moe_text": {
        **_HEADED,
        **_EXPERTS,
        "shared_expert_intermediate_size": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "gpt_oss": {
        **_HEADED,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "glm4_moe": {
        **_HEADED,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
}
"""Mixtures of experts. With CONFIGS they cover `guards.model.families.FAMILIES`, which a test asserts."""

DENSE_LAYERS: Mapping[str, tuple[int, ...]] = {"glm4_moe": (0,)}
"""Layers without experts of models that have some with."""


VLLM_CLASSES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral3": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "opt": "OPTForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
}
"""model_type -> vLLM's class of it, where it has one that is none of its transformers backend."""

NOT_TRIED = frozenset({"qwen3_5_text", "qwen3_5_moe_text"})
"""Not run on vLLM: its kernels for CPUs take their linear attention in bfloat16 alone, which compares with nothing."""

WRAPPED: Mapping[str, str] = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "mistral3": "ministral3",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
"""Models that also see -> the text model in them."""


def tiny_config(kind: str, **changes: Any) -> Any:
    """The configuration of a tiny model of one family."""
    arguments = {**CONFIGS.get(kind, {}), **EXPERTS.get(kind, {}), **changes}
    return AutoConfig.for_model(kind, **arguments)


def tiny_model(kind: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random-weight model in float32 and eval mode, with weights large enough that every part matters."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval().requires_grad_(False)


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    """Random token ids that are no special token."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
