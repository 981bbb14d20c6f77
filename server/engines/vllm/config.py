"""From flags to vLLM's configuration: its own parser reads them, and what guards cannot stand is refused here."""

from collections.abc import Sequence
from typing import Any

from guards.inside.vllm.settings import SETTINGS
from guards.model.openings import Opening
from server.engines.errors import EngineFlagError
from server.engines.options import VllmOptions

_GUARDS_LIVE_THERE = "skillguard sets it, since its guards live there; leave it out"
_OTHER_MODEL = "it would run another model than the folder whose digests guards are bound to; change the folder"
_FOREIGN_CODE = "it brings code into the engine that guards were not tested with"
REFUSED = {
    "worker_cls": _GUARDS_LIVE_THERE,
    "worker_extension_cls": _GUARDS_LIVE_THERE,
    "scheduler_cls": _GUARDS_LIVE_THERE,
    "additional_config": _GUARDS_LIVE_THERE,
    "model": "give it to skillguard, not in vLLM's --config file",
    "served_model_name": "skillguard's server names the model; say --served-name",
    "tokenizer": "guards know the model folder's own only; leave it out",
    "tokenizer_revision": "guards know the model folder's own tokenizer only; leave it out",
    "revision": "skillguard resolves the model; download that revision and give its folder to --model",
    "model_class_overrides": _OTHER_MODEL,
    "hf_overrides": _OTHER_MODEL,
    "hf_config_path": _OTHER_MODEL,
    "config_format": _OTHER_MODEL,
    "ignore_patterns": _OTHER_MODEL,
    "model_loader_extra_config": _OTHER_MODEL,
    "quantization_config": _OTHER_MODEL,
    "skip_tokenizer_init": "grammars and bad words need the tokenizer",
    "nnodes": "it was not tested: all ranks must be on this machine",
    "kv_cache_dtype": "it was not tested with guards",
    "prefix_match_unit": "it copies parts of cached blocks, and not what guards keep of them",
    "kv_events_config": "it would publish prompts and answers",
    "max_num_queued_reqs": "say --max-waiting",
    "max_num_queued_tokens": "say --max-waiting",
    "logits_processors": _FOREIGN_CODE,
    "reasoning_parser_plugin": _FOREIGN_CODE,
    "io_processor_plugin": _FOREIGN_CODE,
}
"""Attributes of vLLM's arguments that cannot be set, and what to do instead."""


def parse_flags(options: VllmOptions) -> Any:
    """vLLM's AsyncEngineArgs. Raises EngineFlagError in vLLM's own words; `--help=WHAT` prints its help and exits."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> Any:
            raise EngineFlagError(
                f"vLLM's parser: {message}; `skillguard serve --engine vllm --help=all` lists vLLM's flags, of which "
                "those of its HTTP server do not apply: `skillguard serve --help` lists ours"
            )

    parser = AsyncEngineArgs.add_cli_args(Parser(prog="skillguard serve --engine vllm", allow_abbrev=False))
    default = parser.parse_args([])
    try:
        parsed = parser.parse_args(list(options.flags))
    except EngineFlagError:
        raise
    except Exception as error:  # of reading a --config file or a --name.key value, in which vLLM raises what occurs
        raise EngineFlagError(f"vLLM's parser, on {' '.join(options.flags)}: {error}") from error
    for name, instead in REFUSED.items():
        if getattr(parsed, name) != getattr(default, name):
            raise EngineFlagError(f"--{name.replace('_', '-')}: {instead}")
    parsed.model = options.model  # at once: without a network, vLLM looks for whatever model this names
    return AsyncEngineArgs.from_cli_args(parsed)


def prefer_piecewise_graphs(arguments: Any) -> None:
    """Where no mode of CUDA graphs was asked for, takes the one that leaves hooks around the model out of graphs.

    vLLM's own default also records whole passes. Without compilation, or CUDA, vLLM makes it no graphs at all.
    """
    from vllm.config import CUDAGraphMode

    if arguments.compilation_config.cudagraph_mode is None:
        arguments.compilation_config.cudagraph_mode = CUDAGraphMode.PIECEWISE


def take_one_compiler(arguments: Any) -> None:
    """Where no compiler of grammars was asked for, takes the one that vLLM tries first.

    vLLM's `auto` checks each request with several compilers, and keeps the one that its first grammar needed for all
    later ones: what only another one takes passes the check then, and fails once it runs.
    """
    if arguments.structured_outputs_config.backend == "auto":
        arguments.structured_outputs_config.backend = "xgrammar"


def refuse_unguardable(config: Any) -> None:
    """Raises EngineFlagError naming the first feature under which guards are not known to hold."""
    from vllm.compilation.breakable_cudagraph import is_breakable_cudagraph_enabled
    from vllm.config import CompilationMode

    parallel, model, load = config.parallel_config, config.model_config, config.load_config
    untested = "it was not tested"
    scheme = quantisation_scheme(model)
    graphs = config.compilation_config.cudagraph_mode
    recorded = "the hooks around the model would run once, while it is recorded, and never again"
    refused = (
        (config.lora_config, "--enable-lora", "an adapter changes the weights that guards were calibrated on"),
        (
            config.speculative_config,
            "--speculative-config",
            "drafted tokens are accepted several at a time, past the position that a verdict belongs to",
        ),
        (config.kv_transfer_config, "--kv-transfer-config", "keys and values computed elsewhere were not guarded here"),
        (config.ec_transfer_config, "--ec-transfer-config", untested),
        (config.weight_transfer_config, "--weight-transfer-config", "weights would change under verified guards"),
        (config.diffusion_config, "a diffusion model", "it writes many positions at a time"),
        (config.cache_config.kv_sharing_fast_prefill, "--kv-sharing-fast-prefill", "later layers skip prompt tokens"),
        (model.enable_sleep_mode, "--enable-sleep-mode", "weights would be loaded again unverified"),
        (model.enable_prompt_embeds, "--enable-prompt-embeds", untested),
        (model.runner_type != "generate", "--runner", "only generation is served"),
        (
            model.supports_multimodal_inputs,
            "a multimodal model",
            "guards judge text alone; say --language-model-only",
        ),
        (model.trust_remote_code, "--trust-remote-code", "its layers' names prove nothing"),
        (scheme not in (None, *TESTED_QUANTISATION), f"quantisation {scheme}", untested),
        (load.load_format not in ("auto", "safetensors"), f"--load-format {load.load_format}", untested),
        (parallel.data_parallel_size > 1, "--data-parallel-size", f"{untested}; start several servers instead"),
        (parallel.decode_context_parallel_size > 1, "--decode-context-parallel-size", untested),
        (parallel.prefill_context_parallel_size > 1, "--prefill-context-parallel-size", untested),
        (parallel.use_ubatching, "--enable-dbo", "two half batches would run through one set of hooks at a time"),
        (
            parallel.distributed_executor_backend not in (None, "mp", "uni"),
            f"--distributed-executor-backend {parallel.distributed_executor_backend}",
            untested,
        ),
        (config.compilation_config.use_inductor_graph_partition, "use_inductor_graph_partition", untested),
        (
            config.compilation_config.mode == CompilationMode.STOCK_TORCH_COMPILE,
            "compilation mode 1",
            "the model is compiled before guards are in it",
        ),
        (
            graphs.has_full_cudagraphs(),
            f"full CUDA graphs ({graphs.name})",
            f"{recorded}; say -cc.cudagraph_mode=PIECEWISE",
        ),
        (
            is_breakable_cudagraph_enabled(),
            "breakable CUDA graphs",
            f"{recorded}; set VLLM_USE_BREAKABLE_CUDAGRAPH=0",
        ),
    )
    for present, what, why in refused:
        if present:
            raise EngineFlagError(f"{what}: not together with guards, since {why}")
    if config.use_v2_model_runner:
        raise EngineFlagError("model runner V2: it was not tested with guards; set VLLM_USE_V2_MODEL_RUNNER=0")


def quantisation_scheme(model: Any) -> str | None:
    """vLLM's name of a model's quantisation, with the format where one name covers several."""
    if model.quantization != "compressed-tensors":
        return None if model.quantization is None else str(model.quantization)
    settings = getattr(model.hf_config, "quantization_config", None)
    return f"compressed-tensors.{settings.get('format') if isinstance(settings, dict) else None}"


TESTED_QUANTISATION: tuple[str, ...] = (
    "compressed-tensors.int-quantized",
    "auto_gptq",
    "int8_per_channel_weight_only",
)
"""The schemes with which a guard was calibrated and served (`tests/server/engines/vllm`)."""


def guard_settings(
    artifacts: Sequence[tuple[str, str]], openings: Sequence[Opening], sentinel: int, options: VllmOptions
) -> dict[str, Any]:
    """What workers read in vLLM's `additional_config`, which is part of its compile cache's key: a graph compiled with
    other artifacts, or none, is never taken for this one."""
    return {
        SETTINGS: {
            "artifacts": [list(pair) for pair in artifacts],
            "openings": [[list(each.tokens), each.named, each.written] for each in openings],
            "whole": options.judge == "conversation",
            "sentinel": sentinel,
            "allow_untested_runner": options.allow_untested_runner,
        }
    }
