"""Starts vLLM and says what it runs: shared by the engine that serves and the one that calibrates."""

import asyncio
import os
import re
import tempfile
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from guards.artifact.identity import tokenizer_sha256
from guards.artifact.manifest import ModelIdentity
from guards.errors import AttachError, UnsupportedModelError
from guards.inside.vllm.settings import FAILURE_FILE
from guards.model.weights import WeightFiles
from server.engines.vllm.config import (
    prefer_piecewise_graphs,
    quantisation_scheme,
    refuse_unguardable,
    take_one_compiler,
)

T = TypeVar("T")
_LOOK_SECONDS = 1.0
_KILLED = re.compile(r"Failed core proc.*: -9\b")
_ROOM = "lower --gpu-memory-utilization (on CPUs the part of their memory), --max-model-len or --max-num-seqs"


def make_config(arguments: Any, folder: Path, worker: str) -> Any:
    """vLLM's configuration for our worker, from its arguments. Raises EngineFlagError or UnsupportedModelError."""
    arguments.model = str(folder)
    prefer_piecewise_graphs(arguments)
    take_one_compiler(arguments)
    try:
        config = arguments.create_engine_config()
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise UnsupportedModelError(f"vLLM does not take this: {error}") from error
    refuse_unguardable(config)
    config.parallel_config.worker_cls = worker
    return config


def launch(config: Any, disable_log_stats: bool = True) -> AsyncLLM:
    """Starts vLLM's processes and waits for them. Raises AttachError with the reason in one line."""
    with tempfile.TemporaryDirectory() as scratch:
        failure = Path(scratch) / "failure"
        os.environ[FAILURE_FILE] = str(failure)
        try:
            return AsyncLLM.from_vllm_config(config, disable_log_stats=disable_log_stats)
        except Exception as error:
            reason = failure.read_text() if failure.is_file() else f"{error}"
            raise AttachError(f"vLLM did not start: {with_flags(reason)}") from error
        finally:
            del os.environ[FAILURE_FILE]


def with_flags(reason: str) -> str:
    """A reason in one line, which names flags as the command line has them, and one where vLLM names none."""
    line = re.sub(r"`([a-z]+(?:_[a-z]+)+)`", lambda name: f"--{name[1].replace('_', '-')}", " ".join(reason.split()))
    line = re.sub("GPU memory utilization", "--gpu-memory-utilization", line)
    if _KILLED.search(line):
        line = f"a process was killed, as systems do that are short of memory ({line})"
    if "memory" in line and "--" not in line:
        line += f"; {_ROOM}"
    return line


def live_widths(ranks: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The widths that the ranks' blocks have. Raises AttachError where they disagree."""
    widths: dict[str, int] = {}
    for rank in ranks:
        for name, length in rank["widths"].items():
            if widths.setdefault(name, length) != length:
                raise AttachError(
                    f"vLLM's ranks have blocks of {name} {widths[name]} and {length}, of which guards know one: "
                    "serve this model without --pipeline-parallel-size"
                )
    return widths


async def while_alive(llm: AsyncLLM, call: Awaitable[T]) -> T:
    """What a call to vLLM's processes gives. Raises EngineDeadError where these end before it: vLLM tells requests so,
    and nobody else.
    """
    task = asyncio.ensure_future(call)
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_SECONDS))[0]:
            if llm.errored:
                raise EngineDeadError
        return task.result()
    finally:
        task.cancel()


async def live_identity(llm: AsyncLLM, config: Any, folder: Path, files: WeightFiles) -> ModelIdentity:
    """The identity of the model that runs, whose files have been held since before it was loaded.

    Raises AttachError when the ranks do not hold all of it, UnsupportedModelError when a file changed.
    """
    ranks = await while_alive(llm, llm.collective_rpc("describe"))
    covered = sorted({layer for rank in ranks for layer in rank["here"]})
    if covered != list(range(ranks[0]["layers"])):
        raise AttachError(f"vLLM's ranks hold blocks {covered}, the model has {ranks[0]['layers']}")
    widths = live_widths(ranks)
    return ModelIdentity.model_validate(
        {
            "architecture": config.model_config.architectures[0],
            "layers": ranks[0]["layers"],
            "d_model": widths["d_model"],
            "d_ff": widths.get("d_ff", 0),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "tokenizer_sha256": await asyncio.to_thread(tokenizer_sha256, folder),
            "weights_sha256": await asyncio.to_thread(files.digest),
            "quantization": quantisation_scheme(config.model_config),
        }
    )
