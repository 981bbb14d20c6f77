"""Where the tensors are that guards read or change. Always by name, never by position.

| site | tensor | used by |
|---|---|---|
| pre-activation | output of the gate (or first) projection, before the activation function | Neuron Adjust |
| key vector | input of the down (or second) projection | Key Space Detection, Selective Pruning |
| attention | input of the attention's output projection: the heads' outputs side by side | Selective Pruning |
| residual | the residual stream after a block | probes |

A site is one row of SITES. Where its module is in a model is one entry of a family (`families.py`), for each backend.
"""

from collections.abc import Callable, Iterable, Mapping
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
    RESIDUAL = "residual"


class Place(NamedTuple):
    """A site of one layer."""

    layer: int
    site: Site


class End(StrEnum):
    """Which end of its module a site is."""

    INPUT = "input"
    OUTPUT = "output"


class Width(StrEnum):
    """What the length of a site's vector is called.

    `d_ff` is that of a key vector, `d_attention` that of an attention vector: heads times their width, which need not
    be `d_model` (Gemma, Qwen3).
    """

    D_FF = "d_ff"
    D_ATTENTION = "d_attention"
    D_MODEL = "d_model"


@dataclass(frozen=True)
class SiteRow:
    """What holds for a site in every model. `split`: each tensor-parallel rank holds a slice; else all hold all."""

    end: End
    width: Width
    split: bool


SITES: Mapping[Site, SiteRow] = {
    Site.PRE_ACTIVATION: SiteRow(End.OUTPUT, Width.D_FF, split=True),
    Site.KEY: SiteRow(End.INPUT, Width.D_FF, split=True),
    Site.ATTENTION: SiteRow(End.INPUT, Width.D_ATTENTION, split=True),
    Site.RESIDUAL: SiteRow(End.OUTPUT, Width.D_MODEL, split=False),
}


class Form(StrEnum):
    """Which part of what its module takes or gives is the site's.

    FIRST_HALF: of a fused [gate | up] the gate. SUM: of (hidden, residual), which vLLM's blocks hand on apart.
    """

    WHOLE = "whole"
    FIRST_HALF = "first half"
    SUM = "sum"


class Path(NamedTuple):
    """A site's module by its name inside the block, "" for the block itself."""

    module: str
    form: Form = Form.WHOLE


@dataclass(frozen=True)
class Family:
    """Where one family of models has its sites on one backend. `block` holds `{layer}`."""

    block: str
    paths: Mapping[Site, Path]


@dataclass(frozen=True)
class Tap:
    """A site of one block, found: its module, and what of the module's tensors is the site's."""

    module: nn.Module
    end: End
    form: Form


Sizes = Callable[[nn.Module], tuple[int, int]]
"""Inputs and outputs of a projection over all ranks, 0 for what has none. May raise UnsupportedModelError."""


@dataclass(frozen=True)
class ModelSites:
    """Every site of the blocks that this process holds, checked to exist.

    `blocks` maps a layer to its taps. `layers` counts those of the whole model. `widths` are those over all ranks.
    """

    blocks: Mapping[int, Mapping[Site, Tap]]
    layers: int
    widths: Mapping[Width, int]

    @property
    def d_ff(self) -> int:
        """Length of a key vector."""
        return self.widths[Width.D_FF]

    @property
    def d_model(self) -> int:
        """Length of the residual stream's vector."""
        return self.widths[Width.D_MODEL]

    def tap(self, place: Place) -> Tap:
        """The tap of a place. Raises UnsupportedModelError where the model has none of that site."""
        tap = self.blocks[place.layer].get(place.site)
        if tap is None:
            raise UnsupportedModelError(f"layer {place.layer} of this model has no {place.site} site that is known")
        return tap

    def width(self, site: Site) -> int:
        """Length of a site's vector, over all ranks."""
        return self.widths[SITES[site].width]


def find_taps(
    modules: Mapping[str, nn.Module], family: Family, layers: Iterable[int], count: int, sizes: Sizes, kind: str
) -> ModelSites:
    """The taps of some of a model's `count` blocks. `kind` names the model in errors.

    Raises UnsupportedModelError, listing every module that is not where it should be, or naming a projection whose
    widths do not fit.
    """
    names = {
        layer: {
            site: ".".join(filter(None, (family.block.format(layer=layer), path.module)))
            for site, path in family.paths.items()
        }
        for layer in layers
    }
    missing = [name for block in names.values() for name in block.values() if name not in modules]
    if missing:
        raise UnsupportedModelError(
            f"{kind} lacks {len(missing)} expected module(s): {', '.join(missing[:8])}; the family's entry in "
            "guards/model/families.py does not fit this model"
        )
    blocks = {
        layer: {site: Tap(modules[name], SITES[site].end, family.paths[site].form) for site, name in block.items()}
        for layer, block in names.items()
    }
    found = {layer: _widths(layer, taps, sizes) for layer, taps in blocks.items()}
    first, wanted = next(iter(found.items()))
    for layer, got in found.items():
        if got != wanted:
            raise UnsupportedModelError(
                f"block {layer}: got {_named(got)}, wanted those of block {first} of this {kind}: {_named(wanted)}"
            )
    return ModelSites(blocks, count, wanted)


def _named(widths: Mapping[Width, int]) -> str:
    return ", ".join(f"{name} {length}" for name, length in widths.items())


def _widths(layer: int, taps: Mapping[Site, Tap], sizes: Sizes) -> dict[Width, int]:
    """Raises UnsupportedModelError where the projections of a block do not fit together."""
    first, key, attention = (taps[site] for site in (Site.PRE_ACTIVATION, Site.KEY, Site.ATTENTION))
    d_ff, d_model = sizes(key.module)
    d_attention, after_attention = sizes(attention.module)
    before_activation = sizes(first.module)[1] // (2 if first.form is Form.FIRST_HALF else 1)
    if not d_ff or not d_attention or before_activation != d_ff or d_model != after_attention:
        kinds = ", ".join(type(tap.module).__name__ for tap in (first, key, attention))
        raise UnsupportedModelError(
            f"block {layer}: got a pre-activation of width {before_activation}, a feed-forward output projection of "
            f"{(d_ff, d_model)} and an attention output projection of {(d_attention, after_attention)} ({kinds}), "
            "wanted linear layers: the first as wide as the second's input, the last two of one output"
        )
    return {Width.D_FF: d_ff, Width.D_ATTENTION: d_attention, Width.D_MODEL: d_model}


_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


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
