"""How the readings of all guards lie side by side, one row per sampled token, on an engine that carries them along.

Suffixes: R rows, C cells, G guards.

A cell is what one place, a site of a layer, says for one part of one guard: a cube's score, or the number of neurons
that an intervention moved there. Cells of a place lie together, scores before counts. A detector's part is one cell; an
intervention's only part is the sum of its cells, one per place. Fresh memory and a hook that did not run read NaN,
which nothing treats as a pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guards.methods import Bound, detectors, interventions
from guards.sites import Place
from guards.verdict import Reading


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
            Cell(name, index, Place(part.layer, detector.site))
            for name, detector in detectors(bound).items()
            for index, part in enumerate(detector.parts)
        ]
        found += [Cell(name, 0, place) for name, each in interventions(bound).items() for place in each.places]
        self.all = tuple(sorted(found, key=lambda cell: cell.place))
        self.counts = [i for i, cell in enumerate(self.all) if bound[cell.guard].taus is None]
        """Columns that count moved neurons; the others are scores."""
        self.guards = tuple(bound)
        self._columns: dict[str, tuple[bool, list[int]]] = {}
        for name, guard in bound.items():
            mine = [i for i, cell in enumerate(self.all) if cell.guard == name]
            self._columns[name] = guard.taus is None, sorted(mine, key=lambda i: self.all[i].part)
        taus = [_tau(bound[cell.guard], cell.part) for cell in self.all]
        owners = [[float(cell.guard == name) for name in self.guards] for cell in self.all]
        self._taus_C = torch.tensor(taus, dtype=torch.float32)
        self._owner_CG = torch.tensor(owners, dtype=torch.float32).reshape(len(self.all), len(self.guards))

    def __len__(self) -> int:
        return len(self.all)

    def at(self, place: Place) -> list[int]:
        """The columns of a place, which are consecutive."""
        return [index for index, cell in enumerate(self.all) if cell.place == place]

    def over_ranks(self, cells_NRC: Tensor) -> Tensor:
        """One reading of N tensor-parallel ranks' slices, [R, C]: a score is a maximum over the width, a count a sum.

        Both keep a NaN of any rank.
        """
        cells_RC = cells_NRC.amax(dim=0)
        cells_RC[:, self.counts] = cells_NRC[:, :, self.counts].sum(dim=0)
        return cells_RC

    def parts(self, cells_RC: Tensor, name: str) -> Tensor:
        """A guard's parts, float32 [R, parts]."""
        summed, columns = self._columns[name]
        parts_RP = cells_RC[:, columns]
        return parts_RP.sum(dim=1, keepdim=True) if summed else parts_RP

    def codes(self, cells_RC: Tensor) -> Tensor:
        """`Reading` of every guard, int8 [R, G]; compared in float32. All guards at once: this runs at every step."""
        if self._taus_C.device != cells_RC.device:
            self._taus_C, self._owner_CG = self._taus_C.to(cells_RC.device), self._owner_CG.to(cells_RC.device)
        invalid_RG = (~torch.isfinite(cells_RC)).float() @ self._owner_CG > 0
        inside_RG = (cells_RC <= self._taus_C).float() @ self._owner_CG > 0
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


def _tau(guard: Bound, part: int) -> float:
    """A detector's threshold; an intervention has none, so that its counts are never inside."""
    return -torch.inf if guard.taus is None else float(guard.taus[part])
