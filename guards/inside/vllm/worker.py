"""vLLM's workers with sites: one that serves guards, and the base it shares with calibration's.

What they add is installed when the model is loaded, before anything is traced or run. vLLM imports a worker by name in
its own processes. What a worker cannot install it refuses, and the reason reaches the operator (`failures.py`).
"""

import signal
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.platforms import current_platform
from vllm.v1.core.kv_cache_utils import check_enough_kv_cache_memory
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from guards.artifact.pins import ArtifactPath
from guards.contract.guard import default_rules
from guards.contract.turn_finder import TurnFinder
from guards.core.policy import Rule
from guards.errors import AttachError, SkillguardError
from guards.inside.vllm.board import TENSOR_KEY, Board
from guards.inside.vllm.events import EVENTS
from guards.inside.vllm.failures import tell, told
from guards.inside.vllm.prompts import PromptJudge
from guards.inside.vllm.sampler import Judged, WithholdingSampler
from guards.inside.vllm.sequences import finder, slots_of
from guards.inside.vllm.settings import SETTINGS
from guards.inside.vllm.sites import find_local_sites
from guards.inside.vllm.switches import off_finder
from guards.methods.loaded import LoadedGuard, read_guards
from guards.model.openings import Opening
from guards.model.shard import Shard
from guards.model.sites import ModelSites

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker

TESTED_RUNNERS = (CPUModelRunner,)
WEIGHT_CHANGES = (
    "reload_weights",
    "update_weights",
    "start_weight_update",
    "start_draft_weight_update",
    "init_weight_transfer_engine",
    "reset_weights",
    "update_config",
    "add_lora",
)
"""The methods by which vLLM's worker changes what it runs. Here each of them refuses."""


class SiteWorker(PlatformWorker):  # type: ignore[misc]
    """A worker that puts something on the model's sites, and says why where it cannot."""

    _sites: ModelSites

    def __init__(self, *args: Any, **options: Any) -> None:
        with told():
            super().__init__(*args, **options)

    def init_device(self) -> None:
        """As vLLM's worker, which looks here whether there is room enough on a GPU, and on CPUs when it is made."""
        with told():
            super().init_device()

    def _install(self, config: VllmConfig) -> None:
        """Puts it there, and sets `_sites`."""
        raise NotImplementedError

    def load_model(self, **options: Any) -> None:
        """Loads the model and installs. Raises SkillguardError, naming the reason."""
        # Ctrl-C reaches every process of a terminal. A worker that died of it by itself would look like a failure.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with told():
            self._refuse_untested()
            super().load_model(**options)
            self._install(self.vllm_config)
            self._make_intermediate_tensors(self.vllm_config)

    def determine_available_memory(self) -> Any:
        """Traces the model on its way, which is when a site finds that it cannot see what it reads."""
        with told():
            available = super().determine_available_memory()
        self._foresee(available)
        return available

    def _foresee(self, available: int) -> None:
        """Tells why vLLM's core, a process without anything of ours, will refuse this much memory, if it will."""
        config = self.vllm_config
        fitted = config.model_config.original_max_model_len == -1 or config.cache_config.num_gpu_blocks_override
        if not fitted:
            try:
                check_enough_kv_cache_memory(config, self.get_kv_cache_spec(), available)
            except ValueError as error:
                tell(error)

    def _make_intermediate_tensors(self, config: VllmConfig) -> None:
        """Room for what the stage before sends.

        vLLM makes it in its warm-up, which it leaves out for an uncompiled model with a cache of given size.
        """
        if not get_pp_group().is_first_rank:
            make_empty = self.model_runner.get_model().make_empty_intermediate_tensors
            tokens = config.scheduler_config.max_num_batched_tokens
            self.model_runner.intermediate_tensors = make_empty(tokens, config.model_config.dtype, self.device)

    def _refuse_untested(self) -> None:
        if missing := [name for name in WEIGHT_CHANGES if not hasattr(PlatformWorker, name)]:
            raise AttachError(
                f"vLLM's {PlatformWorker.__name__} has no {', '.join(missing)}: weights might change by another name, "
                "which nothing refuses; install the vLLM release that skillguard was tested with"
            )
        runner = type(self.model_runner)
        settings = self.vllm_config.additional_config[SETTINGS]
        if runner not in TESTED_RUNNERS and not settings["allow_untested_runner"]:
            raise AttachError(
                f"vLLM runs this model by {runner.__module__}.{runner.__name__}, which guards were not tested with "
                f"(tested: {', '.join(known.__name__ for known in TESTED_RUNNERS)}); `allow_untested_runner` takes it, "
                "and then canaries are the only proof"
            )
        for attribute in ("sampler", "input_batch", "requests", "discard_request_mask"):
            if not hasattr(self.model_runner, attribute):
                raise AttachError(f"{runner.__name__} has no {attribute}: this is not vLLM's model runner V1")

    def _shard(self) -> Shard:
        return Shard(get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size())

    def describe(self) -> dict[str, Any]:
        """What this rank runs, for the engine to compare with the artifacts."""
        sites = self._sites
        return {
            "layers": sites.layers,
            "here": sorted(sites.blocks),
            "widths": {width.value: length for width, length in sites.widths.items()},
            "lacking": [[layer, site.value, why] for (layer, site), why in sites.lacking.items()],
        }

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise SkillguardError("weights cannot change while guards are served: start again, so that they are verified")


for _name in WEIGHT_CHANGES:
    setattr(SiteWorker, _name, SiteWorker._refuse)


class _GuardedOutput(AsyncModelRunnerOutput):  # type: ignore[misc]
    """A step's output that is still on its way to the host, with what was judged in it."""

    def __init__(self, inner: AsyncModelRunnerOutput, judged: Judged) -> None:
        self._inner, self._judged = inner, judged

    def get_output(self) -> ModelRunnerOutput:
        output = self._inner.get_output()
        setattr(output, EVENTS, self._judged.report())
        return output


class GuardedWorker(SiteWorker):
    """The guards on the board, and what they said beside each token."""

    _offered: tuple[str, LoadedGuard] | None = None

    def _install(self, config: VllmConfig) -> None:
        settings, runner = config.additional_config[SETTINGS], self.model_runner
        # The front refuses what it cannot verify; calibration reads a guard before it has canaries.
        loaded = read_guards([ArtifactPath(Path(path)) for path, _ in settings["artifacts"]], verifiable=False)
        for entry, (path, digest) in zip(loaded.values(), settings["artifacts"], strict=True):
            if entry.artifact.digest != digest:
                raise AttachError(f"{path}: changed while the engine started")
        model = runner.get_model()
        self._sites = find_local_sites(model, config.model_config.hf_text_config)
        self._board = board = Board(
            self._sites,
            {name: (entry.method, entry.guard) for name, entry in loaded.items()},
            shard=self._shard(),
            find_sequences=finder(runner),
            find_off=off_finder(runner),
            turns=TurnFinder(
                [Opening(tuple(ids), *rest) for ids, *rest in settings["openings"]],
                self.device,
                whole=settings["whole"],
            ),
            tokens=config.scheduler_config.max_num_batched_tokens,
            dtype=config.model_config.dtype,
            device=self.device,
        )
        board.surround(model)
        self._loaded = loaded
        self._sampler = sampler = WithholdingSampler(
            runner.sampler, runner, board.columns, self._defaults(), settings["sentinel"]
        )
        runner.sampler = sampler
        self._prompts = prompts = PromptJudge(runner, sampler, board.columns, settings["sentinel"])
        compute_logits, make_empty = model.compute_logits, model.make_empty_intermediate_tensors

        def compute_guarded_logits(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            hidden_states, rows = board.split(hidden_states)
            if not prompts.hear(rows):
                sampler.put(rows)
            return compute_logits(hidden_states, *args, **kwargs)

        def make_empty_with_cells(batch_size: int, dtype: torch.dtype, device: torch.device) -> Any:
            tensors = make_empty(batch_size, dtype, device)
            tensors.tensors[TENSOR_KEY] = board.empty(batch_size)
            return tensors

        model.compute_logits = compute_guarded_logits
        if len(board.columns):
            model.make_empty_intermediate_tensors = make_empty_with_cells

    def _defaults(self) -> dict[str, Rule]:
        return default_rules(self._board.bound, {name: entry.guard.scope for name, entry in self._loaded.items()})

    def offer_guard(self, name: str, folder: str, digest: str) -> str | None:
        """Reads another artifact for a guard; why it cannot take its place here, if it cannot."""
        self._offered = None
        try:
            (entry,) = read_guards([ArtifactPath(Path(folder))], verifiable=False).values()
            if entry.artifact.digest != digest:
                return "changed while it was read"
            if entry.method != self._loaded[name].method:
                return f"it is of the method {entry.method.name}, and the guard is of {self._loaded[name].method.name}"
            self._board.offer(name, entry.method, entry.guard)
        except SkillguardError as error:
            return str(error)
        self._offered = name, entry
        return None

    def exchange_guard(self) -> None:
        """Puts what was offered in the guard's place; called again, puts that one back."""
        assert self._offered is not None, "nothing is exchanged that was not offered"
        name, entry = self._offered
        self._board.exchange()
        self._offered = name, self._loaded[name]
        self._loaded[name] = entry
        self._sampler.judge_by_default(self._defaults())

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """As vLLM's worker, with room for what guards keep at every slot: vLLM records passes right after."""
        self._board.books.reserve(slots_of(kv_cache_config))
        super().initialize_from_config(kv_cache_config)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """As vLLM's worker, with what the guards said attached to the output."""
        output = super().sample_tokens(grammar_output)
        judged = self._sampler.take()
        prompts = self._prompts.take()
        if judged is None:
            return output
        judged.prompts = prompts
        if isinstance(output, AsyncModelRunnerOutput):
            return _GuardedOutput(output, judged)
        setattr(output, EVENTS, judged.report())
        return output
