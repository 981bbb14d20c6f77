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
}
"""model_type -> the arguments of its configuration. Covers `guards.model.sites.FAMILIES`, which a test asserts."""

EXPERTS: Mapping[str, Mapping[str, Any]] = {
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "qwen2_moe": {**_GROUPED, "num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
}
"""Mixture-of-experts configurations, which are refused."""


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
