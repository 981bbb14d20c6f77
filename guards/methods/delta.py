"""A low-rank change of what some layers' down projections give: the one form of methods that change weights.

Suffixes: T tokens, F feed-forward width (d_ff), D the residual stream's (d_model), R rank, S rows of a product.

A layer's output becomes ``y = W k + (k A^T) B^T`` with k its key vector. It is a branch beside the weight, which stays
as it is: so it is switched for each request, and a request without it has the model as it was. Methods differ in how
they find A and B. They keep them as `Factors`, put them on disk by `dump_deltas`, and are served by `BoundDelta`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from guards.artifact.manifest import SMALLEST, PositiveFloat32, Strict
from guards.artifact.store import Artifact, take_tensor
from guards.contract.guard import PUSH, Column, Health, OverColumns, OverRanks, Part
from guards.errors import ArtifactError, AttachError
from guards.model.shard import Shard
from guards.model.sites import Place, Site

FACTOR_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Factors:
    """One layer's change, scale and all: `a_RF` takes a key vector to R numbers, `b_DR` those to the output.

    Both are of one of FACTOR_DTYPES. `usual`: root mean square length of the residual stream after the block, at the
    last tokens of retain prompts. By it is told how far outputs are pushed, and nothing else.
    """

    a_RF: Tensor
    b_DR: Tensor
    usual: float

    def strongest(self) -> Tensor:
        """The change's largest singular value times its right singular vector, float32 [F].

        With a key vector it gives how far the output is pushed along the way on which it is pushed most.
        """
        _, mixed_RR = torch.linalg.qr(self.b_DR.double())
        rotated_RF = mixed_RR @ self.a_RF.double()
        _, vectors_RR = torch.linalg.eigh(rotated_RF @ rotated_RF.T)
        strongest_F: Tensor = (vectors_RR[:, -1] @ rotated_RF).float()
        return strongest_F


class FactorsRecord(Strict):
    """A layer's scalars; its tensors are `layer.<layer>.a` and `layer.<layer>.b`."""

    layer: Annotated[int, Field(ge=0)]
    rank: Annotated[int, Field(ge=1)]
    usual: PositiveFloat32


def take_deltas(artifact: Artifact, records: Sequence[FactorsRecord]) -> tuple[dict[int, Factors], set[str]]:
    """The change of each layer, and the names of the tensors that hold it. Raises ArtifactError."""
    model = artifact.manifest.model
    deltas: dict[int, Factors] = {}
    names: set[str] = set()
    for record in records:
        layer, rank = record.layer, record.rank
        if layer >= model.layers or layer in deltas:
            raise ArtifactError(f"{artifact.name}: got layer {layer} twice or above the model's {model.layers} layers")
        if rank > min(model.d_ff, model.d_model):
            raise ArtifactError(
                f"{artifact.name}: layer {layer}: got rank {rank}, wanted at most {min(model.d_ff, model.d_model)}, "
                "the smaller of d_ff and d_model"
            )
        shapes = {f"layer.{layer}.a": (rank, model.d_ff), f"layer.{layer}.b": (model.d_model, rank)}
        dtype = next((artifact.tensors[name].dtype for name in shapes if name in artifact.tensors), FACTOR_DTYPES[0])
        if dtype not in FACTOR_DTYPES:
            raise ArtifactError(f"{artifact.name}: layer {layer}: got factors of {dtype}, wanted {FACTOR_DTYPES}")
        a_RF, b_DR = (take_tensor(artifact, name, shape, dtype) for name, shape in shapes.items())
        if not all(bool((each.abs() >= SMALLEST).any()) for each in (a_RF, b_DR)):
            raise ArtifactError(f"{artifact.name}: layer {layer}: got zeros, which change nothing; calibrate again")
        deltas[layer] = Factors(a_RF, b_DR, record.usual)
        names |= shapes.keys()
    return deltas, names


def dump_deltas(deltas: Mapping[int, Factors]) -> tuple[tuple[FactorsRecord, ...], dict[str, Tensor]]:
    """Records for the manifest's parameters, ascending, and tensors."""
    records: list[FactorsRecord] = []
    tensors: dict[str, Tensor] = {}
    for layer, each in sorted(deltas.items()):
        records.append(FactorsRecord(layer=layer, rank=len(each.a_RF), usual=each.usual))
        tensors |= {f"layer.{layer}.a": each.a_RF.cpu(), f"layer.{layer}.b": each.b_DR.cpu()}
    return tuple(records), tensors


class Branch(nn.Module):
    """One layer's change, or a rank's slice of what it takes. Outputs of all ranks are to be summed.

    `into_SF`: A, and one row more that gives the reading. Tensors are buffers, which a compiled model reads as inputs.
    """

    into_SF: Tensor
    b_DR: Tensor

    def __init__(self, into_SF: Tensor, b_DR: Tensor) -> None:
        super().__init__()
        self.register_buffer("into_SF", into_SF, persistent=False)
        self.register_buffer("b_DR", b_DR, persistent=False)

    def forward(self, y_TD: Tensor, _: Tensor, on_T: Tensor, k_TF: Tensor) -> Tensor:
        """Adds to y in place where `on_T` says so; returns how far that pushed it, float32 [T, 1].

        Signed, 0 where it did nothing, and NaN where an output, or what k goes to, is not finite, acted on or not.
        """
        taken_TS = k_TF @ self.into_SF.to(k_TF.dtype).T
        through_TS = torch.where(on_T[:, None], taken_TS, 0)
        y_TD.add_(through_TS[:, :-1] @ self.b_DR.to(k_TF.dtype).T)
        finite_T1 = torch.isfinite(y_TD).all(dim=-1, keepdim=True) & torch.isfinite(taken_TS).all(dim=-1, keepdim=True)
        return torch.where(finite_T1, through_TS[:, -1:].float(), torch.nan)


class BoundDelta:
    """A change of some layers on a device, or a rank's slice of it: each takes its part of a key vector to R numbers.

    What it reads is the length of what it adds along each layer's strongest way, over the residual stream's usual
    length there, all layers together.
    """

    taus: tuple[float, ...] = ()
    health: Health | None = PUSH

    def __init__(self, deltas: Mapping[int, Factors], device: torch.device, shard: Shard) -> None:
        self.parts = (Part("", tuple(sorted(deltas)), over_columns=OverColumns.LENGTH),)
        self.columns = tuple(Column(Place(layer, Site.OUTPUT), 0, OverRanks.SUM) for layer in sorted(deltas))
        self._deltas, self._device, self._shard = deltas, device, shard

    def at(self, place: Place, width: int) -> Branch:
        """The branch at this layer. Raises AttachError when it was made for key vectors of another width."""
        factors = self._deltas[place.layer]
        if factors.a_RF.shape[1] != width:
            raise AttachError(
                f"layer {place.layer}: the model's key vectors are {width} long, not {factors.a_RF.shape[1]}"
            )
        into_SF = torch.cat([factors.a_RF.float(), factors.strongest()[None] / factors.usual])
        return Branch(into_SF[:, self._shard.columns(width)].to(self._device), factors.b_DR.float().to(self._device))
