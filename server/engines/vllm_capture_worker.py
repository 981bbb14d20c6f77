"""vLLM's worker in calibration: it hands out the activations of prompts, of this process's slice and layers.

Suffixes: T tokens of a forward pass, R rows that are wanted, F this rank's feed-forward width.

A site inside the traced graph copies its tensor into a buffer and nothing more: what a graph replays cannot know whose
rows they are. After the pass, outside of every graph, the worker picks the rows that requests asked for.
"""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig

from guards.capture import Span
from guards.sites import Site
from server.engines.vllm_board import require_key
from server.engines.vllm_sites import find_local_sites
from server.engines.vllm_worker import SETTINGS, SiteWorker

CAPTURE = "skillguard_capture"
"""Key of `SamplingParams.extra_args`: the example's index and its `Span`."""


class _KeyCopy(nn.Module):
    """Copies the key vectors of one layer. Part of the traced graph."""

    kept_TF: Tensor

    def __init__(self, kept_TF: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept_TF", kept_TF, persistent=False)

    def forward(self, key: Any) -> None:
        key_TF = require_key(key, self.kept_TF.dtype)
        self.kept_TF[: key_TF.shape[0]] = key_TF


class _PreActivationCopy(nn.Module):
    """Copies the pre-activations of one layer, of [gate | up] the gate half. Part of the traced graph."""

    kept_TF: Tensor

    def __init__(self, kept_TF: Tensor, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.register_buffer("kept_TF", kept_TF, persistent=False)

    def forward(self, output: Tensor) -> None:
        x_TF = output.view(-1, output.shape[-1])
        if self.fused:
            x_TF = x_TF[:, : x_TF.shape[-1] // 2]
        self.kept_TF[: x_TF.shape[0]] = x_TF


def _copy_key(module: Any, args: tuple[Any, ...]) -> None:
    module.skillguard_copy(args[0])


def _copy_pre_activation(module: Any, _: Any, output: Any) -> None:
    module.skillguard_copy(output[0] if isinstance(output, tuple) else output)


class CapturingWorker(SiteWorker):
    """Keeps what the last requests asked for until it is taken, layer by layer."""

    def _install(self, config: VllmConfig) -> None:
        site = Site(config.additional_config[SETTINGS]["capture"])
        self._sites = sites = find_local_sites(self.model_runner.get_model(), config.model_config.hf_config)
        self._kept: dict[int, Tensor] = {}
        self._wanted: list[int] = []
        self._rows: list[tuple[int, int]] = []
        self._taken: dict[int, list[Tensor]] = {}
        shape = (config.scheduler_config.max_num_batched_tokens, sites.d_ff // self._shard().count)
        for layer, (pre_activation, key) in sites.blocks.items():
            kept_TF = self._kept[layer] = torch.empty(shape, dtype=config.model_config.dtype, device=self.device)
            if site is Site.KEY:
                key.add_module("skillguard_copy", _KeyCopy(kept_TF))
                key.register_forward_pre_hook(_copy_key)
            else:
                copy = _PreActivationCopy(kept_TF, sites.family.fused_gate_up)
                pre_activation.add_module("skillguard_copy", copy)
                pre_activation.register_forward_hook(_copy_pre_activation)

    def execute_model(self, scheduler_output: Any) -> Any:
        """As vLLM's worker, then picks the wanted rows of this step."""
        scheduled = scheduler_output.num_scheduled_tokens
        total = scheduler_output.total_num_scheduled_tokens
        for layer in self._wanted:
            self._kept[layer][:total].fill_(torch.nan)  # a site that did not run must not give an older pass's rows
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
        for layer in self._wanted:
            self._taken[layer].append(self._kept[layer].index_select(0, rows_R).cpu())

    def capture(self, layers: list[int]) -> None:
        """Forgets what was kept and keeps those of `layers` that are here, from now on."""
        self._wanted = [layer for layer in layers if layer in self._kept]
        self._rows = []
        self._taken = {layer: [] for layer in self._wanted}

    def take_captured(self, layer: int) -> tuple[int, bytes, bytes] | None:
        """One layer's rows, None where it is not here: this rank's slice, (example, position) int64, activations.

        As bytes, which is what vLLM's messages carry between processes.
        """
        if layer not in self._taken:
            return None
        kept, self._taken[layer] = self._taken[layer], []
        width = self._kept[layer].shape[1]
        x_RF = torch.cat(kept) if kept else torch.empty((0, width), dtype=self._kept[layer].dtype)
        rows = torch.tensor(self._rows, dtype=torch.int64).reshape(-1, 2)
        return self._shard().index, _bytes(rows), _bytes(x_RF)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
