"""Puts guards on a transformers model, all or nothing, and takes them off again.

Suffixes: T tokens of a pass, R rows (sampled tokens), F width of a site, C columns, X entries of a row.

One forward pass at a time. A pre-hook on the model itself learns which rows will be sampled (`logits_to_keep`) and
every token's position; the sites inside the blocks then write what guards say into the pass's cells. A guard whose
parts count a token by itself looks at sampled rows only, so a cube costs one pass over one key vector per sampled token
however long the prompt is. `take` hands out the rows, in the order of the logits' rows. A guard of which some site did
not run is MISSING, which nothing treats as a pass.

Interventions are installed before detectors, in whatever order guards are given: a key vector is to be scored as the
model goes on with it. They act on every token but those of which `switch` says otherwise.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from guards.contract.accumulate import TOKEN
from guards.contract.columns import Bookkeeping, Columns
from guards.contract.guard import Bound, Guard, columns_at, detectors, fuse, interventions
from guards.contract.method import Method
from guards.contract.slots import Sequences
from guards.contract.turn_finder import TurnFinder
from guards.errors import AttachError, GuardReadingError
from guards.inside.taps import Purpose, install
from guards.inside.transformers.sequences import find_sequences, slots_of
from guards.model.openings import Opening
from guards.model.shard import WHOLE
from guards.model.sites import ModelSites, Place


@dataclass(frozen=True)
class Rows:
    """What all guards say about R sampled rows, float32 [R, X] on the host; `missing` names guards not heard of."""

    rows_RX: Tensor
    missing: frozenset[str]


@dataclass
class _Pass:
    """State of the running forward pass. `rows_R` None means every token. `on_T`: where interventions act, bool."""

    rows_R: Tensor | None
    ids_T: Tensor
    positions_T: Tensor
    sequences: Sequences | None
    cells_TC: Tensor
    on_T: Mapping[str, Tensor]
    ran: set[tuple[Place, Purpose]]


class Attachment:
    """Guards installed on a model. Use as a context manager, or call `remove`."""

    def __init__(
        self,
        model: nn.Module,
        sites: ModelSites,
        guards: Mapping[str, tuple[Method, Guard]],
        openings: Sequence[Opening] = (),
        *,
        whole: bool = False,
    ) -> None:
        """`openings` are the chat template's, for guards that tell turns apart; `whole` as of `TurnFinder`."""
        first = next(model.parameters())
        self.bound = {name: method.bind(guard, first.device, WHOLE) for name, (method, guard) in guards.items()}
        self.columns = Columns(self.bound)
        self.books = Bookkeeping(self.columns, first.device, TurnFinder(openings, first.device, whole=whole))
        self._pass: _Pass | None = None
        self._off: Sequence[tuple[int, Collection[str]]] = ()
        for name, bound in self.bound.items():
            wanted = sorted({column.place.layer for column in bound.columns})
            if not wanted or not all(0 <= layer < sites.layers for layer in wanted):
                raise AttachError(f"guard {name!r} wants layers {wanted}, the model has {sites.layers}")
        self._sites_of = {
            name: {(column.place, _purpose(bound)) for column in bound.columns} for name, bound in self.bound.items()
        }
        self._all_sites = frozenset[tuple[Place, Purpose]]().union(*self._sites_of.values())
        with ExitStack() as stack:
            stack.callback(model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True).remove)
            for purpose, acting in (
                (Purpose.CHANGE, interventions(self.bound)),
                (Purpose.SCORE, detectors(self.bound)),
            ):
                for place in sorted({column.place for bound in acting.values() for column in bound.columns}):
                    here = {name: b for name, b in acting.items() if columns_at(b.columns, place)}
                    site = _Site(self, place, purpose, here, sites.width(place.site))
                    stack.callback(install(sites.tap(place), purpose, site, first.dtype))
            self._stack = stack.pop_all()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Takes every hook off. Safe to call twice."""
        self._stack.close()

    def switch(self, off: Sequence[tuple[int, Collection[str]]]) -> None:
        """Which interventions do not act in the next pass, for the tokens of each request, one after another.

        In passes for which nothing is said all act on every token.
        """
        self._off = off

    def _switched(self, tokens: int) -> Mapping[str, Tensor]:
        """Where each intervention acts, bool [T]; forgets what was said. Raises GuardReadingError."""
        off, self._off = self._off, ()
        if not self.columns.health:
            return {}
        everywhere_T = torch.ones(tokens, dtype=torch.bool, device=self.books.device)
        on_T = dict.fromkeys(self.columns.health, everywhere_T)
        if any(names for _, names in off):
            counts = torch.tensor([count for count, _ in off])
            if (planned := int(counts.sum())) != tokens:
                raise GuardReadingError(f"got a pass of {tokens} tokens, and {planned} to switch interventions for")
            for name in on_T:
                on_S = torch.tensor([name not in names for _, names in off])
                on_T[name] = on_S.repeat_interleave(counts).to(self.books.device)
        return on_T

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor):
            raise GuardReadingError("got a forward pass without input_ids: guards need to know the rows")
        batch, length = ids.shape
        positions = kwargs.get("position_ids")
        if positions is None:
            cache = kwargs.get("past_key_values")
            start = 0 if cache is None else int(cache.get_seq_length())
            positions = torch.arange(start, start + length, device=ids.device)
        positions = positions.expand(batch, length)
        rows = kwargs.get("logits_to_keep")
        if isinstance(rows, Tensor):
            if batch != 1:
                raise GuardReadingError(f"got logits_to_keep with a batch of {batch}, wanted a packed batch of 1")
        elif rows:  # a count of each sequence's last, as transformers' `generate` asks for
            ends = torch.arange(1, batch + 1, device=ids.device)[:, None] * length
            rows = (ends + torch.arange(-min(rows, length), 0, device=ids.device)).flatten()
        else:
            rows = None
        sequences = None
        if self.columns.running:
            sequences = find_sequences(kwargs, positions)
            self.books.reserve(slots_of(kwargs))
        cells_TC = self.books.fresh(batch * length)
        on_T = self._switched(batch * length)
        self._pass = _Pass(rows, ids.reshape(-1), positions.reshape(-1), sequences, cells_TC, on_T, set())

    def running(self, place: Place, purpose: Purpose) -> _Pass:
        """The pass that a site runs in, once for each site. Raises GuardReadingError."""
        running = self._pass
        if running is None:
            raise GuardReadingError(f"layer {place.layer} ran outside a forward pass of the model")
        if (place, purpose) in running.ran:
            raise GuardReadingError(f"layer {place.layer} ran twice in one forward pass")
        running.ran.add((place, purpose))
        return running

    def take(self, rows: int) -> Rows:
        """Rows of the forward pass that just ended, the first `rows` of the logits' rows; forgets the pass.

        Of a pass with fewer rows all guards are missing. Raises GuardReadingError when no pass ran since the last call.
        """
        ended, self._pass = self._pass, None
        if ended is None:
            raise GuardReadingError("no guarded forward pass ran: the model was called around its hooks")
        missing: frozenset[str] = frozenset()
        if not self._all_sites <= ended.ran:
            missing = frozenset(name for name, sites in self._sites_of.items() if not sites <= ended.ran)
            unheard = [index for index, each in enumerate(self.columns.all) if each.guard in missing]
            ended.cells_TC[:, unheard] = torch.nan  # what some of its sites wrote says nothing
        rows_TX = self.books.rows(ended.cells_TC, ended.ids_T, ended.positions_T, ended.sequences)
        rows_RX = rows_TX if ended.rows_R is None else rows_TX.index_select(0, ended.rows_R)
        if len(rows_RX) < rows:
            return Rows(torch.full((rows, self.columns.width), torch.nan), frozenset(self.bound))
        return Rows(rows_RX[:rows].to("cpu"), missing)


def _purpose(bound: Bound) -> Purpose:
    return Purpose.SCORE if bound.health is None else Purpose.CHANGE


class _Site(nn.Module):
    """What guards do at one place of a running pass, one after another."""

    def __init__(
        self, attachment: Attachment, place: Place, purpose: Purpose, guards: Mapping[str, Bound], width: int
    ) -> None:
        super().__init__()
        self._running, self._place, self._purpose = attachment.running, place, purpose
        device, self._changes = attachment.books.device, list[tuple[nn.Module, Tensor, str]]()
        self._acts: list[tuple[nn.Module, Tensor, bool]] = []
        if purpose is Purpose.CHANGE:
            for name, bound in guards.items():
                columns_C = torch.tensor(attachment.columns.at(place, {name}), device=device)
                self._changes.append((bound.at(place, width), columns_C, name))
            return
        by_token = {
            name: all(bound.parts[bound.columns[i].part].over_tokens == TOKEN for i in columns_at(bound.columns, place))
            for name, bound in guards.items()
        }
        for sampled_only in (False, True):
            names = [name for name, of_token in by_token.items() if of_token is sampled_only]
            for act, of in fuse([guards[name].at(place, width) for name in names]):
                columns = [at for index in of for at in attachment.columns.at(place, {names[index]})]
                self._acts.append((act, torch.tensor(columns, device=device), sampled_only))

    def forward(self, x_TF: Tensor, *beside: Tensor) -> None:
        """Writes the cells of this pass's tokens; of a detector that looks at single tokens, of the sampled ones."""
        running = self._running(self._place, self._purpose)
        for act, columns_C, name in self._changes:
            running.cells_TC.index_copy_(1, columns_C, act(x_TF, running.positions_T, running.on_T[name], *beside))
        for act, columns_C, sampled_only in self._acts:
            if sampled_only and running.rows_R is not None:
                cells_RC = act(x_TF.index_select(0, running.rows_R), running.positions_T[running.rows_R])
                running.cells_TC[running.rows_R[:, None], columns_C] = cells_RC
            else:
                running.cells_TC.index_copy_(1, columns_C, act(x_TF, running.positions_T))
