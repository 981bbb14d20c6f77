"""How the readings of all guards lie side by side, one row per sampled token, on an engine that carries them along.

Suffixes: R rows, C cells, P parts of all guards, G guards.

A cell is what one place, a site of a layer, says for one part of one guard: a cube's score, a layer's share of a pooled
score, or the number of neurons that an intervention moved there. Cells of a place lie together, scores before counts. A
cube's part is one cell; the only part of a pooled detector or of an intervention is the sum of its cells. Fresh memory
and a hook that did not run read NaN, which nothing treats as a pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guards.contract.guard import Bound, detectors, interventions
from guards.core.part import Part
from guards.core.verdict import Reading
from guards.model.sites import Place


@dataclass(frozen=True)
class Cell:
    """One column: guard by name, index of the part, place."""

    guard: str
    part: int
    place: Place


class Cells:
    """The columns of all guards, ascending by place, and what a row of them says."""

    def __init__(self, bound: Mapping[str, Bound]) -> None:
        found = [
            Cell(name, part, Place(layer, detector.site))
            for name, detector in detectors(bound).items()
            for layer in detector.layers
            for part in (range(len(detector.parts)) if detector.pooled else _living_at(detector.parts, layer))
        ]
        found += [Cell(name, 0, place) for name, each in interventions(bound).items() for place in each.places]
        self.all = tuple(sorted(found, key=lambda cell: cell.place))
        pooled = {name for name, detector in detectors(bound).items() if detector.pooled}
        self.pooled = [i for i, cell in enumerate(self.all) if cell.guard in pooled]
        """Columns that are means over a sequence's tokens so far."""
        self.counts = [i for i, cell in enumerate(self.all) if bound[cell.guard].taus is None]
        """Columns that count moved neurons."""
        self.summed = sorted([*self.pooled, *self.counts])
        """Columns of which ranks' slices are summed; of the others the largest counts."""
        self.guards = tuple(bound)
        parts = [(name, part) for name, guard in bound.items() for part in range(len(guard.parts))]
        self._columns = {name: [i for i, (owner, _) in enumerate(parts) if owner == name] for name in self.guards}
        taus = [_tau(bound[name], part) for name, part in parts]
        owners = [[float(owner == name) for name in self.guards] for owner, _ in parts]
        self._part_C = torch.tensor([parts.index((cell.guard, cell.part)) for cell in self.all], dtype=torch.int64)
        self._taus_P = torch.tensor(taus, dtype=torch.float32)
        self._owner_PG = torch.tensor(owners, dtype=torch.float32).reshape(len(parts), len(self.guards))

    def __len__(self) -> int:
        return len(self.all)

    def at(self, place: Place) -> list[int]:
        """The columns of a place, which are consecutive."""
        return [index for index, cell in enumerate(self.all) if cell.place == place]

    def over_ranks(self, cells_NRC: Tensor) -> Tensor:
        """One reading of N tensor-parallel ranks' slices, [R, C]: a cube's score is a maximum over the width.

        Both keep a NaN of any rank.
        """
        cells_RC = cells_NRC.amax(dim=0)
        cells_RC[:, self.summed] = cells_NRC[:, :, self.summed].sum(dim=0)
        return cells_RC

    def _parts(self, cells_RC: Tensor) -> Tensor:
        """The parts of all guards, float32 [R, P]: sums of cells that keep a NaN of any."""
        if self._taus_P.device != cells_RC.device:
            self._part_C, self._taus_P = self._part_C.to(cells_RC.device), self._taus_P.to(cells_RC.device)
            self._owner_PG = self._owner_PG.to(cells_RC.device)
        empty_RP = cells_RC.new_zeros(len(cells_RC), len(self._taus_P))
        return empty_RP.index_add_(1, self._part_C, cells_RC)

    def parts(self, cells_RC: Tensor, name: str) -> Tensor:
        """A guard's parts, float32 [R, parts]."""
        return self._parts(cells_RC)[:, self._columns[name]]

    def codes(self, cells_RC: Tensor) -> Tensor:
        """`Reading` of every guard, int8 [R, G]; compared in float32. All guards at once: this runs at every step."""
        part_RP = self._parts(cells_RC)
        invalid_RG = (~torch.isfinite(part_RP)).float() @ self._owner_PG > 0
        inside_RG = (part_RP <= self._taus_P).float() @ self._owner_PG > 0
        code_RG = torch.where(inside_RG, int(Reading.INSIDE), int(Reading.OUTSIDE))
        return torch.where(invalid_RG, int(Reading.INVALID), code_RG).to(torch.int8)

    def readings(self, row_C: Sequence[float]) -> dict[str, tuple[Reading, tuple[float, ...]]]:
        """What one row says, as `Row.judge` takes it. A row of another length reads MISSING throughout."""
        if len(row_C) != len(self.all):
            return dict.fromkeys(self.guards, (Reading.MISSING, ()))
        cells_1C = torch.tensor([list(row_C)], dtype=torch.float32)
        codes = self.codes(cells_1C)[0].tolist()
        return {
            name: (Reading(code), tuple(self.parts(cells_1C, name)[0].tolist()))
            for name, code in zip(self.guards, codes, strict=True)
        }


def _living_at(parts: Sequence[Part], layer: int) -> list[int]:
    return [index for index, part in enumerate(parts) if part.layer == layer]


def _tau(guard: Bound, part: int) -> float:
    """A detector's threshold; an intervention has none, so that its counts are never inside."""
    return -torch.inf if guard.taus is None else float(guard.taus[part])
