"""vLLM's worker in calibration: it hands out the activations of prompts, of this process's slice and layers.

Suffixes: T tokens of a forward pass, R rows that are wanted, F this rank's neurons of a site.

A site inside the traced graph copies its tensor into a buffer and nothing more: what a graph replays cannot know whose
rows they are. After the pass, outside of every graph, the worker picks the rows that requests asked for.
"""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig

from guards.calibration.activations import Span
from guards.inside.taps import Purpose, install
from guards.inside.vllm.settings import SETTINGS
from guards.inside.vllm.worker import GuardedWorker
from guards.model.sites import SITES, Place, Site

CAPTURE = "skillguard_capture"
"""Key of `SamplingParams.extra_args`: the example's index and its `Span`."""


class _Copy(nn.Module):
    """Copies the activations of one place. Part of the traced graph."""

    kept_TF: Tensor

    def __init__(self, kept_TF: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept_TF", kept_TF, persistent=False)

    def forward(self, x_TF: Tensor) -> None:
        self.kept_TF[: x_TF.shape[0]] = x_TF


class CapturingWorker(GuardedWorker):
    """Keeps what the last requests asked for until it is taken, layer by layer.

    What guards it is started with change is kept as they leave it: their hooks are the older ones.
    """

    def _install(self, config: VllmConfig) -> None:
        super()._install(config)
        self._kept: dict[Place, Tensor] = {}
        self._wanted: list[Place] = []
        self._rows: list[tuple[int, int]] = []
        self._taken: dict[Place, list[Tensor]] = {}
        tokens = config.scheduler_config.max_num_batched_tokens
        for site in map(Site, config.additional_config[SETTINGS]["capture"]):
            ranks = self._shard().count if SITES[site].split else 1
            for layer, taps in self._sites.blocks.items():
                if site not in taps:
                    continue  # a method that needs it is told why before anything runs
                shape = (tokens, self._sites.width(site) // ranks)
                kept_TF = torch.empty(shape, dtype=config.model_config.dtype, device=self.device)
                place = Place(layer, site)
                self._kept[place] = kept_TF
                install(self._sites.tap(place), Purpose.COPY, _Copy(kept_TF), config.model_config.dtype)

    def execute_model(self, scheduler_output: Any) -> Any:
        """As vLLM's worker, then picks the wanted rows of this step."""
        scheduled = scheduler_output.num_scheduled_tokens
        total = scheduler_output.total_num_scheduled_tokens
        for place in self._wanted:
            self._kept[place][:total].fill_(torch.nan)  # a site that did not run must not give an older pass's rows
        output = super().execute_model(scheduler_output)
        if total and self._wanted:
            self._pick(scheduled)
        return output

    def _pick(self, scheduled: dict[str, int]) -> None:
        """The batch's rows lie one request after another, each from the position that it has reached."""
        batch, rows = self.model_runner.input_batch, []
        start = 0
        for index, request in enumerate(batch.req_ids):
            count, reached = scheduled[request], int(batch.num_computed_tokens_cpu[index])
            extra = self.model_runner.requests[request].sampling_params.extra_args
            example, span = extra[CAPTURE][0], Span(*extra[CAPTURE][1:])
            here = [p for p in span.positions if reached <= p < reached + count]
            rows += [start + p - reached for p in here]
            self._rows += [(example, p) for p in here]
            start += count
        if not rows:
            return
        rows_R = torch.tensor(rows, device=self.device)
        for place in self._wanted:
            self._taken[place].append(self._kept[place].index_select(0, rows_R).cpu())

    def capture(self, site: str, layers: list[int]) -> None:
        """Forgets what was kept and keeps one site of those of `layers` that are here, from now on."""
        places = [Place(layer, Site(site)) for layer in layers]
        self._wanted = [place for place in places if place in self._kept]
        self._rows = []
        self._taken = {place: [] for place in self._wanted}

    def take_captured(self, site: str, layer: int) -> tuple[int, bytes, bytes] | None:
        """One layer's rows: this rank's slice, (example, position) int64, activations.

        None where the layer is not here, or where another rank that holds all of it gives them. As bytes, which is what
        vLLM's messages carry between processes.
        """
        place, index = Place(layer, Site(site)), self._shard().index
        if place not in self._taken or (index and not SITES[place.site].split):
            return None
        kept, self._taken[place] = self._taken[place], []
        like = self._kept[place]
        x_RF = torch.cat(kept) if kept else torch.empty((0, like.shape[1]), dtype=like.dtype)
        rows = torch.tensor(self._rows, dtype=torch.int64).reshape(-1, 2)
        return index, _bytes(rows), _bytes(x_RF)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
