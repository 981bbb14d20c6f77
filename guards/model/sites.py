"""Where, in each model family, the tensors are that guards read or change. Always by name, never by position.

| site | tensor | used by |
|---|---|---|
| pre-activation | output of the gate (or first) projection, before the activation function | Neuron Adjust |
| key vector | input of the down (or second) projection | Key Space Detection, pruning, LUNAR |
| attention | input of the attention's output projection: the heads' outputs side by side | pruning |
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from torch import nn

from guards.errors import UnsupportedModelError


class Site(StrEnum):
    """A tensor inside a block."""

    PRE_ACTIVATION = "pre_activation"
    KEY = "key"
    ATTENTION = "attention"


class Place(NamedTuple):
    """A site of one layer."""

    layer: int
    site: Site


@dataclass(frozen=True)
class Family:
    """Module names of one family; `{layer}` is the block's index.

    `fused_gate_up`: the pre-activation module gives [gate | up] and the pre-activation is its first half.
    """

    pre_activation: str
    key: str
    attention: str
    final_norm: str
    output_head: str
    fused_gate_up: bool = False


_GATED = Family(
    "model.layers.{layer}.mlp.gate_proj",
    "model.layers.{layer}.mlp.down_proj",
    "model.layers.{layer}.self_attn.o_proj",
    "model.norm",
    "lm_head",
)
_PHI3 = Family(
    "model.layers.{layer}.mlp.gate_up_proj",
    "model.layers.{layer}.mlp.down_proj",
    "model.layers.{layer}.self_attn.o_proj",
    "model.norm",
    "lm_head",
    fused_gate_up=True,
)
_OPT = Family(
    "model.decoder.layers.{layer}.fc1",
    "model.decoder.layers.{layer}.fc2",
    "model.decoder.layers.{layer}.self_attn.out_proj",
    "model.decoder.final_layer_norm",
    "lm_head",
)
_GPT2 = Family(
    "transformer.h.{layer}.mlp.c_fc",
    "transformer.h.{layer}.mlp.c_proj",
    "transformer.h.{layer}.attn.c_proj",
    "transformer.ln_f",
    "lm_head",
)
_NEOX = Family(
    "gpt_neox.layers.{layer}.mlp.dense_h_to_4h",
    "gpt_neox.layers.{layer}.mlp.dense_4h_to_h",
    "gpt_neox.layers.{layer}.attention.dense",
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
    """The modules of one block: what gives the pre-activation, and what takes the key and the attention vector."""

    pre_activation: nn.Module
    key: nn.Module
    attention: nn.Module

    def at(self, site: Site) -> nn.Module:
        """The module of a site."""
        module: nn.Module = getattr(self, site.value)
        return module


@dataclass(frozen=True)
class ModelSites:
    """Every site of a model, checked to exist.

    `d_ff` is the length of a key vector, `d_attention` that of an attention vector: heads times their width, which need
    not be `d_model` (Gemma, Qwen3).
    """

    family: Family
    layers: tuple[LayerSites, ...]
    final_norm: nn.Module
    output_head: nn.Module
    d_ff: int
    d_model: int
    d_attention: int

    def width(self, site: Site) -> int:
        """Neurons of a layer at a site."""
        return self.d_attention if site is Site.ATTENTION else self.d_ff


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
    names = [[getattr(family, site.value).format(layer=layer) for site in Site] for layer in range(count)]
    wanted += [name for block in names for name in block]
    missing = [name for name in wanted if name not in modules]
    if missing:
        raise UnsupportedModelError(
            f"model type {config.model_type!r} lacks {len(missing)} expected module(s): {', '.join(missing[:8])}"
        )
    layers = tuple(LayerSites(*(modules[name] for name in block)) for block in names)
    d_ff, d_model = projection_shape(layers[0].key)
    d_attention = projection_shape(layers[0].attention)[0]
    for index, sites in enumerate(layers):
        outputs = projection_shape(sites.pre_activation)[1]
        got = (projection_shape(sites.key)[0], outputs // 2 if family.fused_gate_up else outputs)
        if got != (d_ff, d_ff):
            raise UnsupportedModelError(
                f"block {index}: got key and pre-activation widths {got}, wanted {(d_ff, d_ff)} in every block"
            )
        shape = projection_shape(sites.attention)
        if shape != (d_attention, d_model):
            raise UnsupportedModelError(
                f"block {index}: got an attention output projection of {shape}, wanted {(d_attention, d_model)} in "
                "every block"
            )
    final_norm, output_head = modules[family.final_norm], modules[family.output_head]
    return ModelSites(family, layers, final_norm, output_head, d_ff, d_model, d_attention)
