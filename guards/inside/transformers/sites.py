"""The sites of a transformers model."""

from typing import Any

from torch import nn

from guards.errors import UnsupportedModelError
from guards.model.families import FAMILIES
from guards.model.sites import Family, ModelSites, find_taps, refuse_mixture_of_experts


def find_family(config: Any) -> Family:
    """The family of a transformers configuration. Raises UnsupportedModelError naming what is known."""
    kind = str(getattr(config, "model_type", "?"))
    family = FAMILIES.get(kind)
    refuse_mixture_of_experts(config, family)
    if family is None:
        raise UnsupportedModelError(
            f"model type {kind!r} has no known sites; known: {', '.join(sorted(FAMILIES))}. "
            "Add one line to FAMILIES in guards/model/families.py once its modules were checked"
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

    Raises UnsupportedModelError when the family is unknown, and lists every missing module when names do not resolve.
    """
    config: Any = model.config
    count = int(config.num_hidden_layers)
    kind = f"model type {config.model_type!r}"
    return find_taps(dict(model.named_modules()), find_family(config), range(count), count, projection_shape, kind)
