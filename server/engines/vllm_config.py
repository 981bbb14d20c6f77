"""From flags to vLLM's configuration: its own parser reads them, and what guards cannot stand is refused here."""

from collections.abc import Sequence
from typing import Any

from guards.errors import SkillguardError
from server.engines.options import VllmOptions
from server.engines.vllm_worker import SETTINGS

_OURS = {
    "worker_cls": "--worker-cls",
    "worker_extension_cls": "--worker-extension-cls",
    "scheduler_cls": "--scheduler-cls",
    "additional_config": "--additional-config",
}


class EngineFlagError(SkillguardError):
    """A vLLM flag is unknown to vLLM, malformed, or asks for what guards do not stand."""


def parse_flags(options: VllmOptions) -> Any:
    """vLLM's AsyncEngineArgs. Raises EngineFlagError in vLLM's own words."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> Any:
            raise EngineFlagError(f"vLLM's parser: {message}; `vllm serve --help=all` lists its flags")

    parser = AsyncEngineArgs.add_cli_args(Parser(add_help=False, allow_abbrev=False))
    default = parser.parse_args([])
    parsed = parser.parse_args(list(options.flags))
    if parsed.model != default.model:
        raise EngineFlagError("--model: give it once, before vLLM's flags")
    for name, flag in _OURS.items():
        if getattr(parsed, name) != getattr(default, name):
            raise EngineFlagError(f"{flag}: skillguard sets it, since its guards live there; leave it out")
    parsed.model = options.model  # at once: without a network, vLLM looks for whatever model this names
    return AsyncEngineArgs.from_cli_args(parsed)


def refuse_unguardable(config: Any) -> None:
    """Raises EngineFlagError naming the first feature under which guards are not known to hold."""
    parallel, compilation = config.parallel_config, config.compilation_config
    quantisation = config.model_config.quantization
    reasons = (
        (config.lora_config, "--enable-lora", "an adapter changes the weights that guards were calibrated on"),
        (
            config.speculative_config,
            "--speculative-config",
            "drafted tokens are accepted several at a time, past the position that a verdict belongs to",
        ),
        (config.kv_transfer_config, "--kv-transfer-config", "keys and values computed elsewhere were not guarded here"),
        (parallel.data_parallel_size > 1, "--data-parallel-size", "it was not tested; start several servers instead"),
        (
            getattr(config, "weight_transfer_config", None),
            "--weight-transfer-config",
            "weights would change under verified guards",
        ),
        (config.model_config.enable_sleep_mode, "--enable-sleep-mode", "weights would be loaded again unverified"),
        (getattr(config.model_config, "enable_prompt_embeds", False), "--enable-prompt-embeds", "it was not tested"),
        (config.model_config.runner_type != "generate", "--runner", "only generation is served"),
        (
            quantisation not in (None, *TESTED_QUANTISATION),
            f"quantisation {quantisation}",
            f"it was not tested (tested: {', '.join(TESTED_QUANTISATION) or 'none'})",
        ),
        (config.load_config.load_format == "dummy", "--load-format dummy", "its weights are made up"),
        (config.model_config.trust_remote_code, "--trust-remote-code", "its layers' names prove nothing"),
    )
    for present, what, why in reasons:
        if present:
            raise EngineFlagError(f"{what}: not together with guards, since {why}")
    if compilation.use_inductor_graph_partition:
        raise EngineFlagError("use_inductor_graph_partition: not together with guards, since it was not tested")


TESTED_QUANTISATION: tuple[str, ...] = ("compressed-tensors",)


def guard_settings(artifacts: Sequence[tuple[str, str]], sentinel: int, options: VllmOptions) -> dict[str, Any]:
    """What workers read in vLLM's `additional_config`, which is part of its compile cache's key: a graph compiled with
    other artifacts, or none, is never taken for this one."""
    return {
        SETTINGS: {
            "artifacts": [list(pair) for pair in artifacts],
            "sentinel": sentinel,
            "allow_untested_runner": options.allow_untested_runner,
        }
    }
