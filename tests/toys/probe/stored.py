"""The toy probe on disk and on a device."""

from typing import Any

import torch
from torch import Tensor

from guards.artifact.store import Artifact, take_tensor
from guards.contract.guard import Column, Health, OverRanks, Part
from guards.model.shard import Shard
from guards.model.sites import Place, Site
from tests.toys.probe.guard import Direction, Least, ProbeGuard


def load(artifact: Artifact) -> ProbeGuard:
    layers = tuple(artifact.manifest.parameters["layers"])
    weight_LD = take_tensor(artifact, "weight", (len(layers), artifact.manifest.model.d_model), torch.float32)
    return ProbeGuard(layers, weight_LD, artifact.manifest.parameters["offset"])


def dump(guard: ProbeGuard) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return {"layers": list(guard.layers), "offset": guard.offset}, {"weight": guard.weight_LD}


class BoundProbe:
    health: Health | None = None
    taus = (1.0,)

    def __init__(self, guard: ProbeGuard, device: torch.device, _: Shard) -> None:
        self.parts = (Part("", guard.layers, Least()),)
        self.columns = tuple(Column(Place(layer, Site.RESIDUAL), 0, OverRanks.SAME) for layer in guard.layers)
        self._guard, self._device = guard, device

    def at(self, place: Place, width: int) -> Direction:
        index = self._guard.layers.index(place.layer)
        return Direction(self._guard.weight_LD[index].to(self._device), self._guard.offset / len(self._guard.layers))


bind = BoundProbe
