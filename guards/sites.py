"""Where, in each model family, the tensors are that guards read or change. Always by name, never by position.

| site | tensor | used by |
|---|---|---|
| pre-activation | output of the gate (or first) projection, before the activation function | Neuron Adjust |
| key vector | input of the down (or second) projection | Key Space Detection, pruning, LUNAR |
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import nn

from guards.errors import UnsupportedModelError


class Site(StrEnum):
    """A tensor inside the feed-forward block."""

    PRE_ACTIVATION = "pre_activation"
    KEY = "key"


@dataclass(frozen=True)
class Family:
    """Module names of one family; `{layer}` is the block's index.

    `fused_gate_up`: the pre-activation module gives [gate | up] and the pre-activation is its first half.
    """

    pre_activation: str
    key: str
    final_norm: str
    output_head: str
    fused_gate_up: bool = False


_GATED = Family("model.layers.{layer}.mlp.gate_proj", "model.layers.{layer}.mlp.down_proj", "model.norm", "lm_head")
_PHI3 = Family(
    "model.layers.{layer}.mlp.gate_up_proj",
    "model.layers.{layer}.mlp.down_proj",
    "model.norm",
    "lm_head",
    fused_gate_up=True,
)
_OPT = Family(
    "model.decoder.layers.{layer}.fc1",
    "model.decoder.layers.{layer}.fc2",
    "model.decoder.final_layer_norm",
    "lm_head",
)
_GPT2 = Family("transformer.h.{layer}.mlp.c_fc", "transformer.h.{layer}.mlp.c_proj", "transformer.ln_f", "lm_head")
_NEOX = Family(
    "gpt_neox.layers.{layer}.mlp.dense_h_to_4h",
    "gpt_neox.layers.{layer}.mlp.dense_4h_to_h",
    "gpt_neox.final_layer_norm",
    "lm_head",
)

FAMILIES: dict[str, Family] = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "gemma": _GATED,
    "gemma2": _GATED,
    "gemma3_text": _GATED,
    "olmo2": _GATED,
    "olmo3": _GATED,
    "phi3": _PHI3,
    "opt": _OPT,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
}
"""transformers' `config.model_type` -> where its sites are."""

_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class LayerSites:
    """The two modules of one block."""

    pre_activation: nn.Module
    key: nn.Module


@dataclass(frozen=True)
class ModelSites:
    """Every site of a model, checked to exist. `d_ff` is the length of a key vector."""

    family: Family
    layers: tuple[LayerSites, ...]
    final_norm: nn.Module
    output_head: nn.Module
    d_ff: int
    d_model: int


def refuse_mixture_of_experts(config: Any) -> None:
    """Raises UnsupportedModelError when the configuration describes a mixture of experts."""
    kind = str(getattr(config, "model_type", "?"))
    for key in _EXPERT_KEYS:
        experts = getattr(config, key, None)
        if isinstance(experts, int) and experts > 1:
            raise UnsupportedModelError(
                f"model type {kind!r} is a mixture of experts ({key} = {experts}): its layers have no single key "
                "vector, and guards for single experts are not supported; use a dense model"
            )


def find_family(config: Any) -> Family:
    """The family of a transformers configuration. Raises UnsupportedModelError naming what is known."""
    refuse_mixture_of_experts(config)
    kind = str(getattr(config, "model_type", "?"))
    family = FAMILIES.get(kind)
    if family is None:
        raise UnsupportedModelError(
            f"model type {kind!r} has no known sites; known: {', '.join(sorted(FAMILIES))}. "
            "Add one line to FAMILIES in guards/sites.py once its modules were checked"
        )
    return family


def projection_shape(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a Linear, or of GPT-2's Conv1D, whose weight lies transposed."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and weight is not None:
        return int(weight.shape[0]), int(weight.shape[1])
    raise UnsupportedModelError(
        f"got a {type(module).__name__} where a Linear or Conv1D was wanted: quantised or wrapped projections are "
        "not supported on this engine; load the model unquantised"
    )


def find_sites(model: nn.Module) -> ModelSites:
    """Resolves every site of a causal language model.

    Raises UnsupportedModelError when the family is unknown or a mixture of experts, and lists every missing
    module when names do not resolve.
    """
    config: Any = model.config
    family = find_family(config)
    count = int(config.num_hidden_layers)
    modules = dict(model.named_modules())
    wanted = [family.final_norm, family.output_head]
    for layer in range(count):
        wanted += [family.pre_activation.format(layer=layer), family.key.format(layer=layer)]
    missing = [name for name in wanted if name not in modules]
    if missing:
        raise UnsupportedModelError(
            f"model type {config.model_type!r} lacks {len(missing)} expected module(s): {', '.join(missing[:8])}"
        )
    layers = tuple(
        LayerSites(modules[family.pre_activation.format(layer=i)], modules[family.key.format(layer=i)])
        for i in range(count)
    )
    d_ff, d_model = projection_shape(layers[0].key)
    for index, sites in enumerate(layers):
        outputs = projection_shape(sites.pre_activation)[1]
        got = (projection_shape(sites.key)[0], outputs // 2 if family.fused_gate_up else outputs)
        if got != (d_ff, d_ff):
            raise UnsupportedModelError(
                f"block {index}: got key and pre-activation widths {got}, wanted {(d_ff, d_ff)} in every block"
            )
    return ModelSites(family, layers, modules[family.final_norm], modules[family.output_head], d_ff, d_model)
