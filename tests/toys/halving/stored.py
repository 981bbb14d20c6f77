"""The toy halving on disk and on a device."""

from typing import Any

import torch
from torch import Tensor

from guards.artifact.store import Artifact, take_neurons
from guards.contract.guard import Column, Health, OverRanks, Part
from guards.model.shard import Shard
from guards.model.sites import Place, Site
from tests.toys.halving.guard import Halver, HalvingGuard


def load(artifact: Artifact) -> HalvingGuard:
    parameters, model = artifact.manifest.parameters, artifact.manifest.model
    return HalvingGuard(
        parameters["layer"], take_neurons(artifact, "neurons", parameters["count"], ("d_ff", model.d_ff))
    )


def dump(guard: HalvingGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return {"layer": guard.layer, "count": len(guard.neurons_S)}, {"neurons": guard.neurons_S}


class BoundHalving:
    health: Health | None = Health("halves")
    taus: tuple[float, ...] = ()

    def __init__(self, guard: HalvingGuard, device: torch.device, shard: Shard) -> None:
        self.parts = (Part("", guard.layers),)
        self.columns = (Column(Place(guard.layer, Site.KEY), 0, OverRanks.SUM),)
        self._guard, self._device, self._shard = guard, device, shard

    def at(self, place: Place, width: int) -> Halver:
        here_S = self._guard.neurons_S[self._shard.holds(self._guard.neurons_S, width)]
        return Halver((here_S - self._shard.columns(width).start).to(self._device))


bind = BoundHalving
