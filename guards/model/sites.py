"""Where the tensors are that guards read or change. Always by name, never by position.

| site | tensor | used by |
|---|---|---|
| attention | input of the attention's output projection: the heads' outputs side by side | Selective Pruning |
| pre-activation | output of the gate (or first) projection, before the activation function | Neuron Adjust |
| key vector | input of the down (or second) projection | Key Space Detection, Selective Pruning |
| output | output of the down (or second) projection, beside the key vector that it takes | deltas: LUNAR, RMU |
| residual | the residual stream after a block, experts' or not | Key Space Detection over spans, probes, projections |

A site is one row of SITES. Where its module is in a model is one entry of a family (`families.py`), for each backend.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from torch import nn

from guards.errors import UnsupportedModelError


class Site(StrEnum):
    """A tensor inside a block."""

    PRE_ACTIVATION = "pre_activation"
    KEY = "key"
    OUTPUT = "output"
    ATTENTION = "attention"
    RESIDUAL = "residual"


class Place(NamedTuple):
    """A site of one layer."""

    layer: int
    site: Site


class End(StrEnum):
    """Which end of its module a site is. BOTH: what it gives, and what it takes beside that.

    At BOTH, where ranks' outputs are summed, it is what one rank gives before that.
    """

    INPUT = "input"
    OUTPUT = "output"
    BOTH = "both"


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
    """What holds for a site in every model. `width` is that of what its module takes where the site is of both ends,
    and `takes` is the site that this is.

    `split`: each tensor-parallel rank holds a slice; else all hold all.
    """

    end: End
    width: Width
    split: bool
    takes: Site | None = None


SITES: Mapping[Site, SiteRow] = {
    Site.ATTENTION: SiteRow(End.INPUT, Width.D_ATTENTION, split=True),
    Site.PRE_ACTIVATION: SiteRow(End.OUTPUT, Width.D_FF, split=True),
    Site.KEY: SiteRow(End.INPUT, Width.D_FF, split=True),
    Site.OUTPUT: SiteRow(End.BOTH, Width.D_FF, split=True, takes=Site.KEY),
    Site.RESIDUAL: SiteRow(End.OUTPUT, Width.D_MODEL, split=False),
}
"""In the order in which a block computes them. Where it computes attention beside the feed-forward network, neither is
made of the other, and the order claims more than is so.
"""
STEPS: Mapping[Site, int] = {site: step for step, site in enumerate(SITES)}


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


class Instead(NamedTuple):
    """Sites that a block lacks where it has a module, and what that is."""

    sites: frozenset[Site]
    what: str


@dataclass(frozen=True)
class Family:
    """Where one family of models has its sites on one backend. `block` holds `{layer}`.

    `instead`: by its name inside the block, what takes the place of some sites where it is there, as experts take that
    of the one feed-forward network. `varies`: widths that may differ by layer; sites are those of the first's width.
    """

    block: str
    paths: Mapping[Site, Path]
    instead: Mapping[str, Instead] = field(default_factory=dict)
    varies: frozenset[Width] = frozenset()

    @property
    def tells_experts(self) -> bool:
        """Whether blocks of experts are known by a module."""
        return any(Site.KEY in each.sites for each in self.instead.values())


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

    `blocks` maps a layer to its taps. `layers` counts those of the whole model. `widths` are those over all ranks; one
    of which no block here has a site is left out. `lacking` says why a block has no such site.
    """

    blocks: Mapping[int, Mapping[Site, Tap]]
    layers: int
    widths: Mapping[Width, int]
    lacking: Mapping[Place, str] = field(default_factory=dict)

    @property
    def d_ff(self) -> int:
        """Length of a key vector, 0 where no block here has one."""
        return self.widths.get(Width.D_FF, 0)

    @property
    def d_model(self) -> int:
        """Length of the residual stream's vector."""
        return self.widths[Width.D_MODEL]

    def tap(self, place: Place) -> Tap:
        """The tap of a place. Raises UnsupportedModelError where the model has none of that site."""
        tap = self.blocks[place.layer].get(place.site)
        if tap is None:
            why = self.lacking.get(place, "none that is known")
            raise UnsupportedModelError(f"layer {place.layer} of this model has no {place.site} site: {why}")
        return tap

    def width(self, site: Site) -> int:
        """Length of a site's vector, over all ranks. Raises UnsupportedModelError where no block here has that site."""
        width = SITES[site].width
        if width not in self.widths:
            raise UnsupportedModelError(f"no layer of this model has a {site} site")
        return self.widths[width]


def find_taps(
    modules: Mapping[str, nn.Module], family: Family, layers: Iterable[int], count: int, sizes: Sizes, kind: str
) -> ModelSites:
    """The taps of some of a model's `count` blocks. `kind` names the model in errors.

    Raises UnsupportedModelError, listing every module that is not where it should be, or naming a projection whose
    widths do not fit.
    """
    lacking: dict[Place, str] = {}
    names: dict[int, dict[Site, str]] = {}
    for layer in layers:
        block = family.block.format(layer=layer)
        for module, instead in family.instead.items():
            if f"{block}.{module}" in modules:
                lacking |= {Place(layer, site): f"{instead.what} ({module})" for site in instead.sites}
        names[layer] = {
            site: ".".join(filter(None, (block, path.module)))
            for site, path in family.paths.items()
            if Place(layer, site) not in lacking
        }
    missing = [*dict.fromkeys(name for each in names.values() for name in each.values() if name not in modules)]
    if missing:
        raise UnsupportedModelError(
            f"{kind} lacks {len(missing)} expected module(s): {', '.join(missing[:8])}; the family's entry in "
            "guards/model/families.py does not fit this model"
        )
    blocks = {
        layer: {site: Tap(modules[name], SITES[site].end, family.paths[site].form) for site, name in each.items()}
        for layer, each in names.items()
    }
    widths: dict[Width, int] = {}
    first_with: dict[Width, int] = {}
    for layer, taps in blocks.items():
        for width, got in _widths(layer, taps, sizes).items():
            wanted = widths.setdefault(width, got)
            first = first_with.setdefault(width, layer)
            if got == wanted:
                continue
            if width not in family.varies:
                raise UnsupportedModelError(
                    f"block {layer}: got {width} {got}, wanted that of block {first} of this {kind}: {wanted}"
                )
            for site in [site for site in taps if SITES[site].width is width]:
                lacking[Place(layer, site)] = f"its {width} is {got}, not the {wanted} of layer {first}"
                del taps[site]
    if Width.D_MODEL not in widths:
        raise UnsupportedModelError(f"{kind} has no block whose output's width is known: its sites are not understood")
    return ModelSites(blocks, count, widths, lacking)


def _widths(layer: int, taps: Mapping[Site, Tap], sizes: Sizes) -> dict[Width, int]:
    """Those that the projections of a block have. Raises UnsupportedModelError where they do not fit together."""
    found: dict[Width, int] = {}
    outputs: dict[str, int] = {}
    if Site.KEY in taps:
        first, key = taps[Site.PRE_ACTIVATION], taps[Site.KEY]
        found[Width.D_FF], outputs["feed-forward"] = sizes(key.module)
        before_activation = sizes(first.module)[1] // (2 if first.form is Form.FIRST_HALF else 1)
        if not found[Width.D_FF] or before_activation != found[Width.D_FF]:
            raise UnsupportedModelError(
                f"block {layer}: got a pre-activation of width {before_activation} and a feed-forward output "
                f"projection of {sizes(key.module)} ({type(first.module).__name__}, {type(key.module).__name__}), "
                "wanted linear layers, the first as wide as the second's input"
            )
    if Site.ATTENTION in taps:
        attention = taps[Site.ATTENTION].module
        found[Width.D_ATTENTION], outputs["attention"] = sizes(attention)
        if not found[Width.D_ATTENTION]:
            raise UnsupportedModelError(
                f"block {layer}: got an attention output projection of {sizes(attention)} "
                f"({type(attention).__name__}), wanted a linear layer"
            )
    if len(set(outputs.values())) > 1:
        raise UnsupportedModelError(
            f"block {layer}: got output projections of differing width "
            f"({', '.join(f'{name} {width}' for name, width in outputs.items())}), wanted the model's"
        )
    for output in outputs.values():
        found[Width.D_MODEL] = output
    return found


_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def refuse_mixture_of_experts(config: Any, family: Family | None) -> None:
    """Raises UnsupportedModelError when a mixture of experts is of no family whose experts are known."""
    if family is not None and family.tells_experts:
        return
    kind = str(getattr(config, "model_type", "?"))
    for key in _EXPERT_KEYS:
        experts = getattr(config, key, None)
        if isinstance(experts, int) and experts > 1:
            raise UnsupportedModelError(
                f"model type {kind!r} is a mixture of experts ({key} = {experts}), and its sites are not known; a "
                "mixture whose sites are known (docs/families.md), or a dense model, can be guarded"
            )
