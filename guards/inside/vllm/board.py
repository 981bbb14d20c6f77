"""Guards inside vLLM's compiled, batched, sharded model.

Suffixes: T tokens of a forward pass, R rows that are sampled, C cells (`cells.py`), F this rank's feed-forward width.

vLLM selects the rows to sample after the model, so every token carries its cells: sites inside the blocks write them
while the pass runs, hooks around the whole model append them to its hidden states as columns, and a wrapper around
`compute_logits` takes them off the selected rows again. The float32 cells travel as their bits, in one column of a
float32 model or two of a 16-bit one, so that comparisons are exact whatever the model's number format is.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from guards.contract.columns import Cells
from guards.contract.guard import Guard, detectors, interventions
from guards.contract.method import Method
from guards.contract.running import RunningMeans
from guards.errors import AttachError, GuardReadingError
from guards.inside.vllm.sequences import Finder
from guards.inside.vllm.sites import LocalSites
from guards.model.shard import Shard
from guards.model.sites import LayerSites, Place, Site

TENSOR_KEY = "skillguard_cells"
"""Under which the cells travel to the next pipeline stage."""


def require_vectors(x: Any, dtype: torch.dtype) -> Tensor:
    """What a projection was given [T, F], never a copy. Raises GuardReadingError where it is hidden."""
    if not isinstance(x, Tensor) or x.dtype != dtype:
        raise GuardReadingError(
            "this model's activation and quantisation are fused, which hides the key vector: serve it "
            "unquantised, or in a format that quantises inside the linear layer"
        )
    return x.view(-1, x.shape[-1])


class _KeySite(nn.Module):
    """Scores the key vectors of one layer. Part of the traced graph."""

    cells_TC: Tensor

    def __init__(self, banks: list[Any], tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.banks, self.dtype = nn.ModuleList(banks), dtype
        cells_TC = torch.full((tokens, sum(bank.parts for bank in banks)), torch.nan, device=device)
        self.register_buffer("cells_TC", cells_TC, persistent=False)

    def forward(self, key: Any) -> None:
        """Writes the cells of this pass's tokens. Raises GuardReadingError where the key vector is hidden."""
        key_TF = require_vectors(key, self.dtype)
        self.cells_TC[: key_TF.shape[0]] = torch.cat([bank(key_TF) for bank in self.banks], dim=-1)


class _ChangeSite(nn.Module):
    """Changes the activations of one place, one intervention after another. Part of the traced graph.

    `gate_half`: of [gate | up] only the first half is the site's.
    """

    cells_TC: Tensor
    positions_T: Tensor

    def __init__(self, changes: list[nn.Module], gate_half: bool, positions_T: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.changes, self.gate_half, self.dtype = nn.ModuleList(changes), gate_half, dtype
        cells_TC = torch.full((len(positions_T), len(changes)), torch.nan, device=positions_T.device)
        self.register_buffer("cells_TC", cells_TC, persistent=False)
        self.register_buffer("positions_T", positions_T, persistent=False)

    def forward(self, x: Any) -> None:
        """Changes x in place and writes how many neurons of each token moved.

        Raises GuardReadingError where it is hidden.
        """
        x_TF = require_vectors(x, self.dtype)
        if self.gate_half:
            x_TF = x_TF[:, : x_TF.shape[-1] // 2]
        tokens = x_TF.shape[0]
        moved = [change(x_TF, self.positions_T[:tokens]) for change in self.changes]
        self.cells_TC[:tokens] = torch.stack(moved, dim=1)


def _read_key(module: Any, args: tuple[Any, ...]) -> None:
    module.skillguard_key(args[0])


def _change_input(module: Any, args: tuple[Any, ...]) -> None:
    module.skillguard_change(args[0])


def _change_output(module: Any, _: Any, output: Any) -> None:
    module.skillguard_change(output[0] if isinstance(output, tuple) else output)


class Board:
    """All guards on this process's blocks, and the cells of the forward pass that runs."""

    def __init__(
        self,
        sites: LocalSites,
        guards: Mapping[str, tuple[Method, Guard]],
        *,
        shard: Shard,
        find_sequences: Finder,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.bound = {name: method.bind(guard, device, shard) for name, (method, guard) in guards.items()}
        self.cells = Cells(self.bound)
        self.dtype = dtype
        self._width = len(self.cells) * (4 // dtype.itemsize)
        self._shard = shard
        self._find_sequences = find_sequences
        self._tokens = 0
        self._cells_TC = torch.full((tokens, len(self.cells)), torch.nan, device=device)
        self._positions_T = torch.zeros(tokens, dtype=torch.int64, device=device)
        self._received: Tensor | None = None
        self._sites: list[tuple[slice, Tensor]] = []
        wanted = {layer for bound in self.bound.values() for layer in bound.layers}
        if wrong := sorted(layer for layer in wanted if layer >= sites.layers):
            raise AttachError(f"guards want layers {wrong}, the model has {sites.layers}")
        for layer, block in sites.blocks.items():
            for site in Site:
                self._install_changes(Place(layer, site), block, sites)
            self._install_scores(Place(layer, Site.KEY), block)  # last: of what the model goes on with
        self._pooled = [i for i in self.cells.pooled if self.cells.all[i].place.layer in sites.blocks]
        self._means = RunningMeans(len(self._pooled), device)

    def _columns(self, place: Place) -> dict[tuple[str, int], int]:
        """The columns of a place by guard and part."""
        return {(self.cells.all[i].guard, self.cells.all[i].part): i for i in self.cells.at(place)}

    def _install_changes(self, place: Place, block: LayerSites, sites: LocalSites) -> None:
        acting = {name: bound for name, bound in interventions(self.bound).items() if place in bound.places}
        if not acting:
            return
        columns, module = self._columns(place), block.at(place.site)
        before_activation = place.site is Site.PRE_ACTIVATION
        changes = [bound.at(place, sites.width(place.site)) for bound in acting.values()]
        gate_half = before_activation and sites.family.fused_gate_up
        site = _ChangeSite(changes, gate_half, self._positions_T, self.dtype)
        module.add_module("skillguard_change", site)
        if before_activation:
            module.register_forward_hook(_change_output)
        else:
            module.register_forward_pre_hook(_change_input)
        self._sites.append((_span([columns[name, 0] for name in acting]), site.cells_TC))

    def _install_scores(self, place: Place, block: LayerSites) -> None:
        scoring = {name: bound for name, bound in detectors(self.bound).items() if place.layer in bound.layers}
        if not scoring:
            return
        columns, module, banks, read = self._columns(place), block.at(place.site), [], []
        for name, bound in scoring.items():
            parts, bank = bound.at(place.layer)
            banks.append(bank)
            read += [columns[name, part] for part in parts]
        site = _KeySite(banks, self._cells_TC.shape[0], self.dtype, self._cells_TC.device)
        module.add_module("skillguard_key", site)
        module.register_forward_pre_hook(_read_key)
        self._sites.append((_span(read), site.cells_TC))

    def surround(self, model: nn.Module) -> None:
        """Hooks the whole model, outside of what is compiled."""
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end, with_kwargs=True)

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions = kwargs.get("positions")
        if args or not isinstance(positions, Tensor) or positions.dim() != 1:
            raise GuardReadingError("got a forward pass without a position for every token: guards cannot follow it")
        self._tokens = positions.shape[0]
        self._positions_T[: self._tokens].copy_(positions)
        for __, cells_TC in self._sites:
            cells_TC[: self._tokens].fill_(torch.nan)
        intermediate = kwargs.get("intermediate_tensors")
        self._received = None if intermediate is None else intermediate.tensors.pop(TENSOR_KEY)
        if self._received is not None and self._shard.index:
            # These were summed over ranks before they were sent, and will be again: only one rank may bring them.
            self._received[:, self.cells.summed] *= 0

    def _end(self, _: nn.Module, __: Any, ___: Any, output: Any) -> Any:
        cells_TC = self._cells_TC[: self._tokens]
        if self._received is None:
            cells_TC.fill_(torch.nan)
        else:
            cells_TC.copy_(self._received[: self._tokens])
        for columns, here_TC in self._sites:
            cells_TC[:, columns] = here_TC[: self._tokens]
        if self._pooled:
            cells_TC[:, self._pooled] = self._running_means(cells_TC[:, self._pooled])
        if isinstance(output, Tensor):
            return torch.cat([output, _as_columns(cells_TC, output.dtype)], dim=-1)
        if not hasattr(output, "tensors"):
            raise GuardReadingError(f"got a {type(output).__name__} from the model, wanted hidden states")
        output.tensors[TENSOR_KEY] = self._over_ranks(cells_TC)
        return output

    def _running_means(self, values_TC: Tensor) -> Tensor:
        """Of this process's pooled cells, over each sequence's tokens so far; NaN for rows that belong to none."""
        means_TC = torch.full_like(values_TC, torch.nan)
        found = self._find_sequences(self._positions_T[: self._tokens])
        if found is not None:
            rows = found.rows
            means_TC[:rows] = self._means.extend(
                values_TC[:rows], self._positions_T[:rows], found.starts_S, found.slots_T, found.previous_S
            )
        return means_TC

    def empty(self, tokens: int) -> Tensor:
        """Room for a stage's cells, as vLLM makes it for its own intermediate tensors."""
        return torch.full((tokens, len(self.cells)), torch.nan, device=self._cells_TC.device)

    def split(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the columns off selected rows: hidden states [R, d_model], and cells [R, C] over all ranks."""
        width = hidden.shape[-1] - self._width
        columns = hidden[:, width:].contiguous()
        return hidden[:, :width].contiguous(), self._over_ranks(columns.view(torch.float32))

    def _over_ranks(self, cells_XC: Tensor) -> Tensor:
        """The cells of all tensor-parallel ranks as one; the same on every rank."""
        if self._shard.count == 1 or not len(self.cells):  # gathering nothing kills vLLM's workers on CPUs
            return cells_XC
        from vllm.distributed import tensor_model_parallel_all_gather

        gathered = tensor_model_parallel_all_gather(cells_XC.contiguous(), dim=0)
        return self.cells.over_ranks(gathered.view(self._shard.count, *cells_XC.shape))


def _span(columns: list[int]) -> slice:
    """Consecutive columns as a slice."""
    assert columns == list(range(columns[0], columns[-1] + 1))
    return slice(columns[0], columns[-1] + 1)


def _as_columns(cells_TC: Tensor, dtype: torch.dtype) -> Tensor:
    """The bits of float32 cells as columns of another number format."""
    return cells_TC.contiguous().view(dtype)
