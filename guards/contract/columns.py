"""How what all guards say lies side by side: the one bookkeeping of a forward pass, on every engine.

Suffixes: T tokens of a pass, R rows (sampled tokens), C columns of all guards, X entries of a row, P parts of all
guards, G guards, N ranks.

A cell is the number at one token and one column. Sites write cells while the pass runs. `Bookkeeping.rows` then turns
each token's cells into its row: cells whose token counts by itself stay as they are, those of a part that counts a
sequence's tokens so far become one entry, the part's value. A row says everything, wherever it travels: `Columns.parts`
sums it up by part, `Columns.read` tells what each guard reads. Fresh memory and a site that did not run hold NaN, which
nothing treats as a pass.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from guards.contract.accumulate import TOKEN
from guards.contract.guard import Bound, Column, Health, OverColumns, OverRanks, Part
from guards.contract.running import RunningStates
from guards.contract.slots import Sequences, link
from guards.contract.turn_finder import TurnFinder
from guards.core.judge import NEVER, read
from guards.core.policy import Policy
from guards.core.verdict import GuardMode, Reading
from guards.model.sites import Place

GuardReading = tuple[Reading, tuple[float, ...]]
"""What one guard says at one position: its reading, and the value of each part."""


class OwnedColumn(NamedTuple):
    """A column, and the guard whose it is."""

    guard: str
    column: Column


class Said(NamedTuple):
    """What all guards say at R positions, on the host: each part's value, float32 [R, P], and each guard's `Reading`,
    int8 [R, G].
    """

    part_RP: Tensor
    code_RG: Tensor

    def quiet(self) -> Tensor:
        """Where every guard read OUTSIDE, and nothing else: bool [R]."""
        return (self.code_RG == int(Reading.OUTSIDE)).all(dim=1)


class Places(NamedTuple):
    """Which columns and entries are whose, on one device: an index of the host's would be sent there at each pass."""

    token_C: Tensor
    accumulated_C: Tensor
    added_C: Tensor
    running_C: Tensor
    part_X: Tensor
    owner_PG: Tensor
    lengths_P: Tensor


class Columns:
    """The columns of all guards, ascending by place and then in the order of guards, and what a row of them says."""

    def __init__(self, bound: Mapping[str, Bound]) -> None:
        owned = [OwnedColumn(name, column) for name, each in bound.items() for column in each.columns]
        self.all = tuple(sorted(owned, key=lambda each: each.column.place))
        self.guards = tuple(bound)
        self.health: Mapping[str, Health] = {n: each.health for n, each in bound.items() if each.health is not None}
        """What interventions say of themselves."""
        self._owners = [name for name, each in bound.items() for _ in each.parts]
        self._parts: list[Part] = [part for each in bound.values() for part in each.parts]
        self._own: dict[str, slice] = {}
        """Which parts are a guard's."""
        for name, each in bound.items():
            first = max((own.stop for own in self._own.values()), default=0)
            self._own[name] = slice(first, first + len(each.parts))
        self._part_of = [self._own[name].start + column.part for name, column in self.all]
        self.token = [i for i in range(len(self.all)) if self._strategy(i) == TOKEN]
        """Columns whose token counts by itself."""
        self.accumulated = [i for i in range(len(self.all)) if self._strategy(i) != TOKEN]
        """Columns of parts that count all of a sequence's tokens so far."""
        self.running = sorted({self._part_of[i] for i in self.accumulated})
        """Those parts."""
        self._lengths = any(part.over_columns is OverColumns.LENGTH for part in self._parts)
        self.strategies = [self._parts[part].over_tokens for part in self.running]
        self.width = len(self.token) + len(self.running)
        """Entries of a row."""
        self._places: dict[torch.device, Places] = {}

    def _strategy(self, column: int) -> object:
        return self._parts[self._part_of[column]].over_tokens

    def __len__(self) -> int:
        return len(self.all)

    def at(self, place: Place, guards: Collection[str]) -> list[int]:
        """The columns of some guards at a place."""
        return [i for i, each in enumerate(self.all) if each.column.place == place and each.guard in guards]

    def over_ranks(self, cells_NTC: Tensor, columns_C: Tensor) -> Tensor:
        """Cells of N ranks as one, [T, C]; `columns_C` says which they are, int64. A NaN of any rank is kept."""
        most_TC = cells_NTC.amax(dim=0)  # of those that each rank has all of, too: it keeps a NaN
        return torch.where(self.on(columns_C.device).added_C[columns_C], cells_NTC.sum(dim=0), most_TC)

    def running_values(self, cells_TC: Tensor) -> Tensor:
        """The parts that count tokens so far, at each token by itself: float32 [T, running]."""
        empty_TP = cells_TC.new_zeros(len(cells_TC), len(self.running))
        here = self.on(cells_TC.device)
        return empty_TP.index_add_(1, here.running_C, cells_TC.index_select(1, here.accumulated_C))

    def on(self, device: torch.device) -> Places:
        """Indices on a device, made once."""
        if device not in self._places:
            owners = [[float(owner == name) for name in self.guards] for owner in self._owners]
            self._places[device] = Places(
                torch.tensor(self.token, device=device).long(),
                torch.tensor(self.accumulated, device=device).long(),
                torch.tensor([each.column.over_ranks is OverRanks.SUM for each in self.all], device=device).bool(),
                torch.tensor([self.running.index(self._part_of[i]) for i in self.accumulated], device=device).long(),
                torch.tensor([self._part_of[i] for i in self.token] + self.running, device=device).long(),
                torch.tensor(owners, device=device).reshape(len(self._parts), len(self.guards)),
                torch.tensor([part.over_columns is OverColumns.LENGTH for part in self._parts], device=device).bool(),
            )
        return self._places[device]

    def parts(self, rows_RX: Tensor) -> Tensor:
        """The value of each part, float32 [R, P]: a sum or a length, that keeps a NaN of any of its entries."""
        here, empty_RP = self.on(rows_RX.device), rows_RX.new_zeros(len(rows_RX), len(self._parts))
        if not self._lengths:
            return empty_RP.index_add_(1, here.part_X, rows_RX)
        squares_RX = torch.where(here.lengths_P[here.part_X], rows_RX.square(), rows_RX)
        sums_RP = empty_RP.index_add_(1, here.part_X, squares_RX)
        return torch.where(here.lengths_P, sums_RP.sqrt(), sums_RP)

    def taus(self, policies: Sequence[Policy]) -> Tensor:
        """Each policy's thresholds in the order of parts, float32 [R, P]; a part of an intervention is never inside.

        Every policy names every guard.
        """
        if not self.guards:  # as in `readings`
            return torch.empty(len(policies), 0, dtype=torch.float32)
        taus = [[tau for name in self.guards for tau in self._rule_taus(policy, name)] for policy in policies]
        return torch.tensor(taus, dtype=torch.float32).reshape(len(policies), len(self._parts))

    def switched_off(self, policy: Policy) -> frozenset[str]:
        """The interventions that do not act on a request of this policy."""
        return frozenset(
            name for name in self.health if name in policy.rules and policy.rules[name].mode is GuardMode.OFF
        )

    def _rule_taus(self, policy: Policy, name: str) -> tuple[float, ...]:
        own = self._own[name]
        return (NEVER,) * (own.stop - own.start) if name in self.health else policy.rules[name].taus

    def read(self, part_RP: Tensor, tau_RP: Tensor, missing: Collection[str] = ()) -> Tensor:
        """`Reading` of every guard, int8 [R, G], of the values of its parts; see `guards.core.judge.read`."""
        device = part_RP.device
        missing_G = torch.tensor([name in missing for name in self.guards], device=device) if missing else None
        return read(part_RP, tau_RP, self.on(device).owner_PG, missing_G)

    def said(self, rows_RX: Tensor, tau_RP: Tensor, missing: Collection[str] = ()) -> Said:
        """What rows say. Rows of another width are MISSING throughout, and no part has a value."""
        if rows_RX.shape[1] != self.width:
            missing_RG = torch.full((len(rows_RX), len(self.guards)), int(Reading.MISSING), dtype=torch.int8)
            return Said(rows_RX.new_empty(len(rows_RX), 0).cpu(), missing_RG)
        part_RP = self.parts(rows_RX)
        return Said(part_RP.cpu(), self.read(part_RP, tau_RP, missing).cpu())

    def reading(self, said: Said, row: int) -> dict[str, GuardReading]:
        """What one of the rows says, by guard."""
        values, codes = said.part_RP[row].tolist(), said.code_RG[row].tolist()
        return {
            name: (Reading(code), tuple(values[self._own[name]])) for name, code in zip(self.guards, codes, strict=True)
        }

    def readings(self, rows_RX: Tensor, tau_RP: Tensor, missing: Collection[str] = ()) -> list[dict[str, GuardReading]]:
        """What each row says, by guard."""
        if not self.guards:  # a dozen operations on nothing are a thirtieth of a small model's answer
            return [{} for _ in range(len(rows_RX))]
        said = self.said(rows_RX, tau_RP, missing)
        return [self.reading(said, row) for row in range(len(rows_RX))]

    @cached_property
    def health_parts(self) -> list[int]:
        """The parts of interventions, in the order of `health`."""
        return [part for name in self.health for part in range(len(self._parts))[self._own[name]]]


class Bookkeeping:
    """Turns the cells of a forward pass into rows, and keeps between passes what a sequence's tokens so far leave.

    `turns` finds out whose words a token is of. `over_ranks` makes the cells of tensor-parallel ranks one, given the
    index of their columns: [T, C] to [T, C].
    """

    def __init__(
        self,
        columns: Columns,
        device: torch.device,
        turns: TurnFinder,
        over_ranks: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.columns, self.device = columns, device
        self._states = RunningStates(columns.strategies, device)
        self._turns = turns
        self._over_ranks = over_ranks
        self._looks = device.type == "cpu"
        columns.on(device)  # now: made in a pass, they would have it wait for the host

    def reserve(self, slots: int) -> None:
        """Makes room for what is kept at cache slots 0 to `slots` - 1, as `RunningStates.reserve`."""
        if self.columns.running:
            self._states.reserve(slots)
            self._turns.reserve(slots)

    def forget(self) -> None:
        """Forgets what guards keep at cache slots: no text that goes on from one of these reads anything."""
        self._states.forget()

    def fresh(self, tokens: int) -> Tensor:
        """Cells of a pass in which nothing ran yet, float32 [T, C]."""
        return torch.full((tokens, len(self.columns)), torch.nan, device=self.device)

    def rows(self, cells_TC: Tensor, ids_T: Tensor, positions_T: Tensor, sequences: Sequences | None) -> Tensor:
        """Every token's row, float32 [T, X]; entries of single tokens are still those of this rank alone.

        `ids_T` are the tokens, int64. `sequences` says which follow which; None is a pass for nobody, which keeps
        nothing and reads NaN.
        """
        columns, here = self.columns, self.columns.on(self.device)
        if not columns.running:
            return cells_TC
        accumulated_TC = cells_TC
        if self._over_ranks is not None:
            of_ranks_TC = self._over_ranks(cells_TC.index_select(1, here.accumulated_C), here.accumulated_C)
            accumulated_TC = cells_TC.index_copy(1, here.accumulated_C, of_ranks_TC)
        values_TP = columns.running_values(accumulated_TC)
        if sequences is None or not len(values_TP):
            read_TP = self._states.nothing(values_TP)
        else:
            links = link(positions_T, sequences, looks=self._looks)
            read_TP = self._states.extend(values_TP, links, self._turns.find(ids_T, links))
        return torch.cat([cells_TC.index_select(1, here.token_C), read_TP], dim=1)

    def join(self, rows_RX: Tensor) -> Tensor:
        """Selected rows of this rank as those of all ranks, float32 [R, X]."""
        token_C = self.columns.on(self.device).token_C
        if self._over_ranks is None or not len(token_C):
            return rows_RX
        token_RC = self._over_ranks(rows_RX[:, : len(token_C)], token_C)
        return torch.cat([token_RC, rows_RX[:, len(token_C) :]], dim=1)
