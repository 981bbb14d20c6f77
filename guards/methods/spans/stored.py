"""Key Space Detection over spans, on disk and on a device."""

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from guards.artifact.manifest import SMALLEST, BetweenFloat32, Float32, PositiveFloat32, Strict
from guards.artifact.store import Artifact, parse_parameters, refuse_extra_tensors, take_tensor
from guards.contract.accumulate import TOKEN
from guards.contract.guard import Column, Health, OverRanks, Part
from guards.contract.spans import MessageMean, Rise
from guards.errors import ArtifactError, AttachError
from guards.methods.spans.guard import Judgement, LayerWeights, SpanBank, SpanGuard
from guards.methods.spans.options import SiteName
from guards.model.shard import WHOLE, Shard
from guards.model.sites import SITES, Place, Site

VARIANT: Literal["spans"] = "spans"


class TermRecord(Strict):
    """A layer's scalars; its weights are the tensor `term.<index>.weight`."""

    layer: Annotated[int, Field(ge=0)]
    offset: Float32


class SpanRecord(Strict):
    """`Rise`, with its tau."""

    over_tokens: Literal["span"]
    written: bool
    kappa: BetweenFloat32
    tau: BetweenFloat32


class MeanRecord(Strict):
    """`MessageMean`, with its tau: 0 is the skill's mean, 1 the others'."""

    over_tokens: Literal["mean"]
    written: bool
    weight: PositiveFloat32
    tau: BetweenFloat32


class LastRecord(Strict):
    """The value of the token itself, with its tau."""

    over_tokens: Literal["last"]
    tau: BetweenFloat32


JudgementRecord = SpanRecord | MeanRecord | LastRecord


class LinearParameters(Strict):
    """The manifest's `parameters` of a direction over some layers, whatever it was fitted by."""

    site: SiteName = "key"
    """What the weights are for. Not written where it is key vectors."""
    d_attention: Annotated[int, Field(ge=1)] | None = None
    """Length of an attention vector, where that is the site; else not written."""
    terms: tuple[TermRecord, ...] = Field(min_length=1, max_length=256)
    judgements: tuple[Annotated[JudgementRecord, Field(discriminator="over_tokens")], ...] = Field(
        min_length=1, max_length=4
    )

    @model_validator(mode="after")
    def _width_of_attention(self) -> Self:
        if (self.d_attention is None) is (self.site == "attention"):
            raise ValueError(f"got site {self.site!r} and d_attention {self.d_attention}, wanted it of attention alone")
        return self


class SpanParameters(LinearParameters):
    """Those of method "ksd", variant "spans"."""

    variant: Literal["spans"]


def load(artifact: Artifact) -> SpanGuard:
    """Validates parameters and tensors against the manifest's model. Raises ArtifactError."""
    return load_linear(artifact, SpanParameters)


def load_linear(artifact: Artifact, kind: type[LinearParameters]) -> SpanGuard:
    """Validates parameters of a kind, and tensors, against the manifest's model. Raises ArtifactError."""
    manifest = artifact.manifest
    parameters = parse_parameters(artifact, kind)
    layers = [record.layer for record in parameters.terms]
    if layers != sorted(set(layers)) or layers[-1] >= manifest.model.layers:
        raise ArtifactError(
            f"{artifact.name}: got layers {layers}, wanted them ascending, each once, below {manifest.model.layers}"
        )
    judgements = tuple(_judgement(record) for record in parameters.judgements)
    labels = [each.label for each in judgements]
    if len(set(labels)) < len(labels):
        raise ArtifactError(f"{artifact.name}: got judgements {', '.join(labels)}, wanted each once")
    site = Site(parameters.site)
    width = {
        Site.KEY: manifest.model.d_ff,
        Site.RESIDUAL: manifest.model.d_model,
        Site.ATTENTION: parameters.d_attention or 0,
    }[site]
    terms, names = [], set()
    for index, record in enumerate(parameters.terms):
        name = f"term.{index}.weight"
        weight_F = take_tensor(artifact, name, (width,), torch.float32)
        if not bool((weight_F.abs() >= SMALLEST).any()):
            raise ArtifactError(f"{artifact.name}: {name}: got zeros, which score nothing; calibrate again")
        terms.append(LayerWeights(record.layer, weight_F, record.offset))
        names.add(name)
    refuse_extra_tensors(artifact, names)
    return SpanGuard(tuple(terms), judgements, manifest.scope, site)


def _judgement(record: JudgementRecord) -> Judgement:
    if isinstance(record, LastRecord):
        return Judgement(TOKEN, record.tau)
    if isinstance(record, SpanRecord):
        return Judgement(Rise(record.kappa, record.written), record.tau)
    return Judgement(MessageMean(record.weight, record.written), record.tau)


def _record(judgement: Judgement) -> JudgementRecord:
    over, tau = judgement.over_tokens, judgement.tau
    if isinstance(over, Rise):
        return SpanRecord(over_tokens="span", written=over.written, kappa=over.kappa, tau=tau)
    if isinstance(over, MessageMean):
        return MeanRecord(over_tokens="mean", written=over.written, weight=over.weight, tau=tau)
    return LastRecord(over_tokens="last", tau=tau)


def dump(guard: SpanGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors for the artifact."""
    return dump_linear(guard, VARIANT)


def dump_linear(guard: SpanGuard, variant: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Those of a variant."""
    parameters = LinearParameters(
        site=guard.site.value,  # type: ignore[arg-type]
        d_attention=len(guard.terms[0].weight_F) if guard.site is Site.ATTENTION else None,
        terms=tuple(TermRecord(layer=term.layer, offset=term.offset) for term in guard.terms),
        judgements=tuple(map(_record, guard.judgements)),
    )
    tensors = {f"term.{index}.weight": term.weight_F.float().cpu() for index, term in enumerate(guard.terms)}
    written = parameters.model_dump(
        mode="json", exclude_none=True, exclude={"site"} if guard.site is Site.KEY else None
    )
    return {"variant": variant, **written}, tensors


class BoundSpans:
    """A guard over spans on a device, or its slice there of every layer's weights.

    A token's value is linear, so layers and slices add up to the one number that is accumulated.
    """

    health: Health | None = None

    def __init__(self, guard: SpanGuard, device: torch.device, shard: Shard) -> None:
        self.parts = tuple(Part(each.label, guard.layers, each.over_tokens) for each in guard.judgements)
        split = SITES[guard.site].split
        if not split:
            shard = WHOLE
        self.columns = tuple(
            Column(Place(layer, guard.site), part, OverRanks.SUM if split else OverRanks.SAME)
            for layer in guard.layers
            for part in range(len(self.parts))
        )
        self.taus = tuple(each.tau for each in guard.judgements)
        self._guard, self._device, self._shard = guard, device, shard

    def at(self, place: Place, width: int) -> SpanBank:
        """What gives this layer's share of a token's value; the offset is dealt evenly over ranks.

        Raises AttachError when the guard was made for another width.
        """
        (term,) = [term for term in self._guard.terms if term.layer == place.layer]
        if len(term.weight_F) != width:
            raise AttachError(
                f"layer {place.layer}: the model's {place.site} is {width} long, not {len(term.weight_F)}"
            )
        offset = torch.tensor([term.offset / self._shard.count], dtype=torch.float32, device=self._device)
        weight_F = term.weight_F[self._shard.columns(width)].to(self._device)
        return SpanBank(weight_F[None], offset, [len(self.parts)])


bind = BoundSpans
