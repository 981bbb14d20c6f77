"""Runs tiny models on vLLM one after another, in this process, and keeps what their sites hold.

`python -m tests.server.engines.vllm.captured OUTPUT FOLDER...`; a process of its own, since vLLM changes the one it
runs in.
"""

import gc
import os
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch
from vllm import SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.inputs import tokens_input
from vllm.v1.engine.llm_engine import LLMEngine

from guards.calibration.activations import Span
from guards.inside.vllm.capture_worker import CAPTURE
from guards.inside.vllm.settings import SETTINGS
from guards.model.sites import Site
from server.engines.options import VllmOptions
from server.engines.vllm.capture import _WORKER
from server.engines.vllm.config import guard_settings, parse_flags
from server.engines.vllm.launch import make_config
from tests.families import LAYERS, PROMPTS
from tests.server.engines.vllm.families import MORE_FLAGS
from tests.server.engines.vllm.live import SMALL

SITES = (Site.KEY, Site.RESIDUAL)


def capture(folder: Path) -> dict[str, Any]:
    """What the sites of LAYERS hold at PROMPTS, by "site.layer", [T, F]; and which sites are lacking."""
    flags = (*SMALL, "--enforce-eager", "--max-model-len", "256", "--no-enable-prefix-caching")
    options = VllmOptions(model=str(folder), flags=(*flags, *MORE_FLAGS.get(folder.name, ())))
    config = make_config(parse_flags(options), folder, _WORKER)
    config.additional_config = guard_settings([], [], sentinel=0, options=options)
    config.additional_config[SETTINGS]["capture"] = [site.value for site in SITES]
    engine = LLMEngine.from_vllm_config(config, disable_log_stats=True)
    (described,) = engine.collective_rpc("describe")
    found: dict[str, Any] = {"lacking": described["lacking"], "widths": described["widths"]}
    for site in SITES:
        engine.collective_rpc("capture", args=(site.value, list(LAYERS)))
        for index, ids in enumerate(PROMPTS):
            asked = [index, *Span(0, len(ids), None)]
            params = SamplingParams(max_tokens=1, temperature=0, detokenize=False, extra_args={CAPTURE: asked})
            engine.add_request(f"{site}-{index}", tokens_input(list(ids)), params)
            while engine.has_unfinished_requests():
                engine.step()
        for layer in LAYERS:
            taken = engine.collective_rpc("take_captured", args=(site.value, layer))[0]
            if taken is not None:
                x = torch.frombuffer(bytearray(taken[2]), dtype=torch.float32)
                found[f"{site.value}.{layer}"] = x.view(sum(map(len, PROMPTS)), -1)
    del engine
    cleanup_dist_env_and_memory()
    gc.collect()
    return found


if __name__ == "__main__":
    output, *folders = map(Path, sys.argv[1:])
    for each in folders:
        try:
            said = capture(each)
        except Exception as error:  # the test says which
            said = {"error": f"{type(error).__name__}: {error}"}
        torch.save(said, output / f"{each.name}.pt")
        print(each.name, said.get("error", "ran"), flush=True)
