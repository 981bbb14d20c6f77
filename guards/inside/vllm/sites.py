"""Where the sites are in vLLM's own model classes. By name; a class that is not here is refused."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from guards.errors import UnsupportedModelError
from guards.model.sites import LayerSites, Site, refuse_mixture_of_experts


@dataclass(frozen=True)
class VllmFamily:
    """Module names of one family, `{layer}` being the block's index.

    `fused_gate_up`: the pre-activation module gives [gate | up], on each rank of its own slices.
    """

    block: str
    pre_activation: str
    key: str
    attention: str
    fused_gate_up: bool


_GATED = VllmFamily("model.layers.{layer}", "mlp.gate_up_proj", "mlp.down_proj", "self_attn.o_proj", True)
_OPT = VllmFamily("model.decoder.layers.{layer}", "fc1", "fc2", "self_attn.out_proj", False)
_GPT2 = VllmFamily("transformer.h.{layer}", "mlp.c_fc", "mlp.c_proj", "attn.c_proj", False)

VLLM_FAMILIES: dict[str, VllmFamily] = {
    "LlamaForCausalLM": _GATED,
    "MistralForCausalLM": _GATED,
    "Qwen2ForCausalLM": _GATED,
    "Qwen3ForCausalLM": _GATED,
    "GemmaForCausalLM": _GATED,
    "Gemma2ForCausalLM": _GATED,
    "Gemma3ForCausalLM": _GATED,
    "Phi3ForCausalLM": _GATED,
    "OPTForCausalLM": _OPT,
    "GPT2LMHeadModel": _GPT2,
}
"""vLLM's model class -> where its sites are."""


@dataclass(frozen=True)
class LocalSites:
    """The sites that this process holds, by layer. `d_ff` and `d_attention` are the widths over all ranks."""

    family: VllmFamily
    blocks: dict[int, LayerSites]
    layers: int
    d_ff: int
    d_model: int
    d_attention: int

    def width(self, site: Site) -> int:
        """Neurons of a layer at a site, over all ranks."""
        return self.d_attention if site is Site.ATTENTION else self.d_ff


def find_local_sites(model: nn.Module, config: Any) -> LocalSites:
    """Resolves the sites of the blocks that this pipeline rank holds.

    Raises UnsupportedModelError for an unknown class, a mixture of experts, a block whose modules are not where they
    should be, or whose projections hide their input (fused or without a width).
    """
    refuse_mixture_of_experts(config)
    kind = type(model).__name__
    family = VLLM_FAMILIES.get(kind)
    if family is None:
        raise UnsupportedModelError(
            f"vLLM serves this model by its class {kind}, whose sites are not known; known: "
            f"{', '.join(sorted(VLLM_FAMILIES))}"
        )
    modules, blocks, widths = dict(model.named_modules()), {}, set()
    count = int(config.num_hidden_layers)
    for layer in range(count):
        block = modules.get(family.block.format(layer=layer))
        if block is None or type(block).__name__ == "PPMissingLayer":
            continue
        names = [f"{family.block.format(layer=layer)}.{getattr(family, site.value)}" for site in Site]
        missing = [name for name in names if name not in modules]
        if missing:
            raise UnsupportedModelError(f"{kind} lacks the module(s) {', '.join(missing)}")
        block = LayerSites(*(modules[name] for name in names))
        first, key = block.pre_activation, block.key
        sizes = (*_sizes(key), _sizes(block.attention)[0])
        outputs = _sizes(first)[1] // (2 if family.fused_gate_up else 1)
        if not all(sizes) or outputs != sizes[0]:
            raise UnsupportedModelError(
                f"block {layer}: got pre-activation width {outputs} and key width {sizes[0]} "
                f"({type(first).__name__}, {type(key).__name__}) and attention width {sizes[2]} "
                f"({type(block.attention).__name__}), wanted parallel linear layers, the first two of one width"
            )
        widths.add(sizes)
        blocks[layer] = block
    if len(widths) != 1:
        raise UnsupportedModelError(
            f"got feed-forward, model and attention widths {sorted(widths)} in this rank's blocks, wanted one of each"
        )
    d_ff, d_model, d_attention = widths.pop()
    return LocalSites(family, blocks, count, d_ff, d_model, d_attention)


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a parallel linear layer over all ranks, 0 for what is none."""
    return int(getattr(module, "input_size", 0)), int(getattr(module, "output_size", 0))
