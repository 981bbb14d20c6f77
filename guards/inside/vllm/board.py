"""Guards inside vLLM's compiled, batched, sharded model.

Suffixes: T tokens of a forward pass, R rows that are sampled, C columns and X entries (`columns.py`), F this rank's
width of a site.

vLLM selects the rows to sample after the model, so every token carries its row. Sites inside the blocks write cells
while the pass runs. Hooks around the whole model turn them into rows and append these to its hidden states as columns.
A wrapper around `compute_logits` takes them off the selected ones again. Their float32 bits travel, in one column of a
float32 model or two of a 16-bit one, so that comparisons are exact whatever the model's number format is. A pipeline
stage that is not the last hands its cells on, as one of all tensor-parallel ranks.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guards.contract.columns import Bookkeeping, Columns
from guards.contract.guard import Bound, Guard, columns_at, detectors, fuse, interventions
from guards.contract.method import Method
from guards.contract.turn_finder import TurnFinder
from guards.errors import AttachError, GuardReadingError
from guards.inside.taps import Purpose, install
from guards.inside.vllm.exchange import pairs, require_like, swap
from guards.inside.vllm.reduction import reduce_last
from guards.inside.vllm.sequences import Finder
from guards.model.shard import Shard
from guards.model.sites import End, ModelSites, Place

_MROPE = 3
"""Positions of a token in time, height and width, which multimodal models have."""
TENSOR_KEY = "skillguard_cells"
"""Under which the cells travel to the next pipeline stage."""


class _Site(nn.Module):
    """What guards do at one place, one after another. Part of the traced graph.

    It writes to a buffer of its own: what a graph that is replayed writes to must not move.
    """

    cells_TC: Tensor
    positions_T: Tensor

    def __init__(self, acts: list[nn.Module], on: list[Tensor], columns: int, positions_T: Tensor) -> None:
        """`on`: of interventions, where each acts, bool [T]; none of detectors."""
        super().__init__()
        self.acts = nn.ModuleList(acts)
        self.on = [f"on_{index}" for index in range(len(on))]
        for name, on_T in zip(self.on, on, strict=True):
            self.register_buffer(name, on_T, persistent=False)
        cells_TC = torch.full((len(positions_T), columns), torch.nan, device=positions_T.device)
        self.register_buffer("cells_TC", cells_TC, persistent=False)
        self.register_buffer("positions_T", positions_T, persistent=False)

    def forward(self, x_TF: Tensor, *beside: Tensor) -> None:
        """Writes the cells of this pass's tokens."""
        tokens = x_TF.shape[0]
        positions_T, switches = self.positions_T[:tokens], [getattr(self, name)[:tokens] for name in self.on]
        if switches:
            cells = [act(x_TF, positions_T, on_T, *beside) for act, on_T in zip(self.acts, switches, strict=True)]
        else:
            cells = [act(x_TF, positions_T) for act in self.acts]
        self.cells_TC[:tokens] = torch.cat(cells, dim=-1)


class Board:
    """All guards on this process's blocks, and the cells of the forward pass that runs."""

    def __init__(
        self,
        sites: ModelSites,
        guards: Mapping[str, tuple[Method, Guard]],
        *,
        shard: Shard,
        find_sequences: Finder,
        find_off: Callable[[], Sequence[tuple[int, Collection[str]]]],
        turns: TurnFinder,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`find_off`: of the pass that begins, the interventions that do not act on each request, and its tokens."""
        self.bound = {name: method.bind(guard, device, shard) for name, (method, guard) in guards.items()}
        self.columns = Columns(self.bound)
        self.books = Bookkeeping(self.columns, device, turns, None if shard.count == 1 else self._over_ranks)
        self._shard = shard
        self._find_sequences, self._find_off = find_sequences, find_off
        self._on_T = {name: torch.ones(tokens, dtype=torch.bool, device=device) for name in self.columns.health}
        self._switched = False
        self._bits = 4 // dtype.itemsize
        self._tokens = 0
        self._cells_TC = self.books.fresh(tokens)
        self._positions_T = torch.zeros(tokens, dtype=torch.int64, device=device)
        self._ids_T = torch.zeros_like(self._positions_T)
        self._received: Tensor | None = None
        self._sites: list[tuple[Tensor, Tensor]] = []
        self._acts: dict[tuple[str, Place], nn.Module] = {}
        self._model_sites, self._device = sites, device
        self._offered: tuple[str, Bound, list[tuple[Tensor, Tensor]]] | None = None
        wanted = {each.column.place.layer for each in self.columns.all}
        if wrong := sorted(layer for layer in wanted if layer >= sites.layers):
            raise AttachError(f"guards want layers {wrong}, the model has {sites.layers}")
        # Changes first: a detector scores what the model goes on with.
        for purpose, acting in ((Purpose.CHANGE, interventions(self.bound)), (Purpose.SCORE, detectors(self.bound))):
            for place in sorted({column.place for bound in acting.values() for column in bound.columns}):
                if place.layer in sites.blocks:
                    self._install(sites, place, purpose, acting, dtype)

    def _install(
        self, sites: ModelSites, place: Place, purpose: Purpose, acting: Mapping[str, Bound], dtype: torch.dtype
    ) -> None:
        here = {name: bound for name, bound in acting.items() if columns_at(bound.columns, place)}
        acts = {name: bound.at(place, sites.width(place.site)) for name, bound in here.items()}
        self._acts |= {(name, place): act for name, act in acts.items()}
        names, fused = [*acts], fuse([*acts.values()])
        columns = [at for _, of in fused for index in of for at in self.columns.at(place, {names[index]})]
        on = [self._on_T[names[index]] for _, of in fused for index in of] if purpose is Purpose.CHANGE else []
        site, tap = _Site([act for act, _ in fused], on, len(columns), self._positions_T), sites.tap(place)
        install(tap, purpose, site, dtype)
        if tap.end is End.BOTH:
            reduce_last(tap.module)
        self._sites.append((torch.tensor(columns, device=site.cells_TC.device), site.cells_TC))

    def offer(self, name: str, method: Method, guard: Guard) -> None:
        """What `exchange` is to put in a guard's place. Raises AttachError where the traced graph cannot take it."""
        self._offered = None
        bound, running = method.bind(guard, self._device, self._shard), self.bound[name]
        require_like(running, bound)
        matched: list[tuple[Tensor, Tensor]] = []
        for (owner, place), act in self._acts.items():
            if owner == name:
                matched += pairs(act, bound.at(place, self._model_sites.width(place.site)))
        self._offered = name, bound, matched

    def exchange(self) -> None:
        """The offered guard acts, and the one before is the offered one. What was kept of texts is forgotten.

        Not while a sequence is on its way.
        """
        assert self._offered is not None, "nothing is exchanged that was not offered"
        name, bound, matched = self._offered
        swap(matched)
        self._offered = name, self.bound[name], matched
        self.bound[name] = bound
        self.books.forget()

    def surround(self, model: nn.Module) -> None:
        """Hooks the whole model, outside of what is compiled, where any guard reads it."""
        if not len(self.columns):
            return
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end, with_kwargs=True)

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions, ids = kwargs.get("positions"), kwargs.get("input_ids")
        if isinstance(positions, Tensor) and positions.dim() == 2 and len(positions) == _MROPE:
            positions = positions[0]  # of text, all three are the same
        if args or not isinstance(positions, Tensor) or positions.dim() != 1:
            raise GuardReadingError("got a forward pass without a position for every token: guards cannot follow it")
        self._tokens = positions.shape[0]
        self._positions_T[: self._tokens].copy_(positions)
        if self.columns.running:
            if not isinstance(ids, Tensor) or ids.shape != positions.shape:
                raise GuardReadingError("got a forward pass without its tokens: guards cannot tell turns apart")
            self._ids_T[: self._tokens].copy_(ids)
        self._switch()
        for __, cells_TC in self._sites:
            cells_TC[: self._tokens].fill_(torch.nan)
        intermediate = kwargs.get("intermediate_tensors")
        self._received = None if intermediate is None else intermediate.tensors.pop(TENSOR_KEY)
        if self._received is not None and self._shard.index:
            # These were summed over ranks before they were sent, and will be again: only one rank may bring them.
            # Multiplied, and not set: a NaN has to stay one.
            self._received.mul_(~self.columns.on(self._received.device).added_C)

    def _switch(self) -> None:
        """Writes where each intervention acts in the pass that begins: on every token that nothing is said of."""
        off = self._find_off() if self._on_T else ()
        switched = any(names for _, names in off)
        for name, on_T in self._on_T.items() if switched or self._switched else ():
            on_T.fill_(True)
            start = 0
            for count, names in off:
                if name in names:
                    on_T[start : start + count] = False
                start += count
            if switched and start > self._tokens:
                raise GuardReadingError(f"got {self._tokens} tokens, and {start} to switch interventions for")
        self._switched = switched

    def _end(self, _: nn.Module, __: Any, ___: Any, output: Any) -> Any:
        cells_TC = self._cells_TC[: self._tokens]
        if self._received is None:
            cells_TC.fill_(torch.nan)
        else:
            cells_TC.copy_(self._received[: self._tokens])
        for columns_C, here_TC in self._sites:
            cells_TC.index_copy_(1, columns_C, here_TC[: self._tokens])
        if isinstance(output, Tensor):
            positions_T = self._positions_T[: self._tokens]
            sequences = self._find_sequences(positions_T) if self.columns.running else None
            rows_TX = self.books.rows(cells_TC, self._ids_T[: self._tokens], positions_T, sequences)
            return torch.cat([output, rows_TX.contiguous().view(output.dtype)], dim=-1)
        if not hasattr(output, "tensors"):
            raise GuardReadingError(f"got a {type(output).__name__} from the model, wanted hidden states")
        everything_C = torch.arange(len(self.columns), device=cells_TC.device)
        output.tensors[TENSOR_KEY] = (
            cells_TC.clone() if self._shard.count == 1 else self._over_ranks(cells_TC, everything_C)
        )
        return output

    def empty(self, tokens: int) -> Tensor:
        """Room for a stage's cells, as vLLM makes it for its own intermediate tensors."""
        return self.books.fresh(tokens)

    def split(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the columns off selected rows: hidden states [R, d_model], and rows [R, X] of all ranks."""
        if not self.columns.width:
            return hidden, torch.empty(len(hidden), 0, dtype=torch.float32, device=hidden.device)
        width = hidden.shape[-1] - self.columns.width * self._bits
        entries = hidden[:, width:].contiguous()
        return hidden[:, :width].contiguous(), self.books.join(entries.view(torch.float32))

    def _over_ranks(self, cells_TC: Tensor, columns_C: Tensor) -> Tensor:
        """The cells of all tensor-parallel ranks as one; the same on every rank."""
        if not len(columns_C):  # gathering nothing kills vLLM's workers on CPUs
            return cells_TC
        from vllm.distributed import tensor_model_parallel_all_gather

        gathered = tensor_model_parallel_all_gather(cells_TC.contiguous(), dim=0)
        return self.columns.over_ranks(gathered.view(self._shard.count, *cells_TC.shape), columns_C)
