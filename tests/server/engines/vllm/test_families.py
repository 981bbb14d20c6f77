"""Each family that vLLM has: a guard over spans, calibrated on transformers, reads there what plain passes read."""

from pathlib import Path
from typing import Any

import pytest

from guards.inside.transformers.loading import load_model
from guards.model.sites import Site
from server.engines.options import VllmOptions
from tests.families import PROMPTS, TURNED, expected, span_guard
from tests.models import CONFIGS, EXPERTS
from tests.served import save_tiny_model, write_guard
from tests.server.engines.vllm.live import live, on_vllm

WIDE = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
"""What vLLM's kernels for CPUs take."""
STATES = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
CHANGES: dict[str, dict[str, Any]] = {
    "gemma4_text": {"global_head_dim": 32, "hidden_size_per_layer_input": 32},
    "granitemoehybrid": {"shared_intermediate_size": 256},
    "qwen3_5_text": STATES,
    "qwen3_5_moe_text": {**STATES, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen2_moe": {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {"moe_intermediate_size": 32},
    "glm4_moe": {"moe_intermediate_size": 32},
    "mixtral": {"intermediate_size": 32},
    "olmoe": {"intermediate_size": 32},
    "gpt_oss": {"intermediate_size": 32},
}
FLAGS = ("--enforce-eager", "--max-model-len", "256")
DENSE = ("ministral3", "phi3", "granite", "granitemoehybrid", "glm4", "gemma4_text", "lfm2", "qwen3_5_text")
SERVED = [*((kind, Site.KEY) for kind in DENSE), *((kind, Site.RESIDUAL) for kind in EXPERTS)]


@pytest.mark.parametrize(("kind", "site"), SERVED)
def test_a_guard_reads_what_plain_passes_read(kind: str, site: Site, tmp_path: Path) -> None:
    assert kind in {*CONFIGS, *EXPERTS}
    model = save_tiny_model(tmp_path / "model", kind, template=TURNED, **{**WIDE, **CHANGES.get(kind, {})})
    loaded = load_model(model, "cpu", "float32")
    guard = span_guard(loaded, site)
    artifact = write_guard(tmp_path / "tens", loaded, guard)
    with live(on_vllm(str(artifact), flags=FLAGS, options=VllmOptions(model=str(model)))) as running:
        found = [each["tens"] for each in running.scores(PROMPTS)]
    wanted = expected(loaded, guard)
    assert [each.reading for each in found] == [reading for reading, _ in wanted]
    assert [each.score for each in found] == pytest.approx([score for _, score in wanted], abs=1e-3)
