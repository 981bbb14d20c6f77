"""The sites of vLLM's own model classes, of the blocks that this process holds."""

from typing import Any

from torch import nn

from guards.errors import UnsupportedModelError
from guards.model.families import VLLM_FAMILIES, VLLM_WRAPPERS
from guards.model.sites import ModelSites, find_taps, refuse_mixture_of_experts


def find_local_sites(model: nn.Module, config: Any) -> ModelSites:
    """Resolves the sites of the blocks that this pipeline rank holds. `config` is that of the text model.

    Raises UnsupportedModelError for an unknown class, a mixture of experts of which none is known, a block whose
    modules are not where they should be, or whose projections hide their input (fused or without a width).
    """
    kind = type(model).__name__
    if kind in VLLM_WRAPPERS:
        return find_local_sites(model.get_submodule(VLLM_WRAPPERS[kind]), config)
    family = VLLM_FAMILIES.get(kind)
    refuse_mixture_of_experts(config, family)
    if family is None:
        raise UnsupportedModelError(
            f"vLLM serves this model by its class {kind}, whose sites are not known; known: "
            f"{', '.join(sorted([*VLLM_FAMILIES, *VLLM_WRAPPERS]))}"
        )
    modules, count = dict(model.named_modules()), int(config.num_hidden_layers)
    blocks = [modules.get(family.block.format(layer=layer)) for layer in range(count)]
    here = [
        layer for layer, block in enumerate(blocks) if block is not None and type(block).__name__ != "PPMissingLayer"
    ]
    if not here:
        raise UnsupportedModelError(f"this rank of vLLM holds no block of {kind}, wanted at least one")
    return find_taps(modules, family, here, count, _sizes, kind)


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a parallel linear layer over all ranks, 0 for what is none."""
    return int(getattr(module, "input_size", 0)), int(getattr(module, "output_size", 0))
