"""Where the sites of `guards.sites` are in vLLM's own model classes. By name; a class that is not here is refused."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from guards.errors import UnsupportedModelError
from guards.sites import refuse_mixture_of_experts


@dataclass(frozen=True)
class VllmFamily:
    """Module names of one family, `{layer}` being the block's index.

    `fused_gate_up`: the pre-activation module gives [gate | up], on each rank of its own slices.
    """

    block: str
    pre_activation: str
    key: str
    fused_gate_up: bool


_GATED = VllmFamily("model.layers.{layer}", "mlp.gate_up_proj", "mlp.down_proj", True)
_OPT = VllmFamily("model.decoder.layers.{layer}", "fc1", "fc2", False)
_GPT2 = VllmFamily("transformer.h.{layer}", "mlp.c_fc", "mlp.c_proj", False)

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
    """The sites that this process holds: (pre-activation, key) by layer. `d_ff` is the width over all ranks."""

    family: VllmFamily
    blocks: dict[int, tuple[nn.Module, nn.Module]]
    layers: int
    d_ff: int
    d_model: int


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
        names = [f"{family.block.format(layer=layer)}.{name}" for name in (family.pre_activation, family.key)]
        missing = [name for name in names if name not in modules]
        if missing:
            raise UnsupportedModelError(f"{kind} lacks the module(s) {', '.join(missing)}")
        first, key = (modules[name] for name in names)
        sizes = tuple(int(getattr(key, name, 0)) for name in ("input_size", "output_size"))
        outputs = int(getattr(first, "output_size", 0)) // (2 if family.fused_gate_up else 1)
        if not all(sizes) or outputs != sizes[0]:
            raise UnsupportedModelError(
                f"block {layer}: got pre-activation width {outputs} and key width {sizes[0]} "
                f"({type(first).__name__}, {type(key).__name__}), wanted two parallel linear layers of one width"
            )
        widths.add(sizes)
        blocks[layer] = (first, key)
    if len(widths) != 1:
        raise UnsupportedModelError(f"got feed-forward widths {sorted(widths)} in this rank's blocks, wanted one")
    d_ff, d_model = widths.pop()
    return LocalSites(family, blocks, count, d_ff, d_model)
