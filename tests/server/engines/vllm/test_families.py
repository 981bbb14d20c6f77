"""Each family that vLLM has: its sites hold there what they hold on transformers, and guards read them alike."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from guards.inside.transformers.loading import load_model
from guards.model.sites import Place, Site
from server.engines.options import VllmOptions
from tests.families import LAYERS, PROMPTS, TURNED, expected, span_guard, vectors
from tests.models import CONFIGS, EXPERTS, NOT_TRIED, VLLM_CLASSES
from tests.served import save_tiny_model, write_guard
from tests.server.engines.vllm.families import MORE_FLAGS
from tests.server.engines.vllm.live import live, on_vllm

WIDE = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
"""What vLLM's kernels for CPUs take."""
STATES = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 2},
    **{"linear_key_head_dim": 32, "linear_value_head_dim": 32},
}
YARN = {
    **{"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    **{"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
}
CHANGES: dict[str, dict[str, Any]] = {
    "gemma4_text": {"global_head_dim": 32, "hidden_size_per_layer_input": 32},
    "granitemoehybrid": {"shared_intermediate_size": 256},
    "lfm2": {"conv_dim": 64, "conv_dim_out": 64, "block_dim": 64, "block_ff_dim": 256},
    "qwen3_5_text": STATES,
    "qwen3_5_moe_text": {**STATES, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen2_moe": {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {"moe_intermediate_size": 32},
    "glm4_moe": {"moe_intermediate_size": 32},
    "mixtral": {"intermediate_size": 32},
    "olmoe": {"intermediate_size": 32},
    "gpt_oss": {"intermediate_size": 32, "rope_parameters": YARN},
}
TRIED = sorted({*VLLM_CLASSES} - NOT_TRIED)
MINUTES = 20


def _saved(folder: Path, kind: str) -> Path:
    return save_tiny_model(folder / kind, kind, template=TURNED, **{**WIDE, **CHANGES.get(kind, {})})


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every family's model, and what its sites hold on vLLM in KIND.pt."""
    folder: Path = tmp_path_factory.mktemp("families")
    models = [str(_saved(folder, kind)) for kind in TRIED]
    command = [sys.executable, "-m", "tests.server.engines.vllm.captured", str(folder), *models]
    subprocess.run(command, check=True, timeout=60 * MINUTES)
    return folder


@pytest.mark.parametrize("kind", TRIED)
def test_sites_hold_what_they_hold_on_transformers(captured: Path, kind: str) -> None:
    said = torch.load(captured / f"{kind}.pt", weights_only=True)
    assert "error" not in said, said
    loaded = load_model(captured / kind, "cpu", "float32")
    there = {Place(layer, Site(site)) for layer, site, _ in said["lacking"]}
    assert there == set(loaded.lacking), "both engines say which blocks lack what"
    assert {str(width): size for width, size in loaded.sites.widths.items()} == said["widths"]
    assert ("key" not in {site for _, site, _ in said["lacking"]}) == (kind in CONFIGS)
    for site in (Site.KEY, Site.RESIDUAL) if kind in CONFIGS else (Site.RESIDUAL,):
        found = [vectors(loaded, site, prompt) for prompt in PROMPTS]
        for layer in LAYERS:
            wanted = torch.cat([each[layer] for each in found])
            torch.testing.assert_close(said[f"{site}.{layer}"], wanted, rtol=1e-3, atol=1e-3)
            assert float(wanted.std()) > 0.01


@pytest.mark.parametrize(
    ("kind", "site"), [("glm4", Site.KEY), ("lfm2", Site.KEY), ("qwen3_moe", Site.RESIDUAL)], ids=lambda each: str(each)
)
def test_a_guard_reads_what_plain_passes_read(kind: str, site: Site, tmp_path: Path) -> None:
    """Of a dense family, of one with layers that keep a state, and of a mixture of experts."""
    assert kind in {*CONFIGS, *EXPERTS}
    model = _saved(tmp_path, kind)
    loaded = load_model(model, "cpu", "float32")
    guard = span_guard(loaded, site)
    artifact = write_guard(tmp_path / "tens", loaded, guard)
    flags = ("--enforce-eager", "--max-model-len", "256", "--no-enable-prefix-caching", *MORE_FLAGS.get(kind, ()))
    with live(on_vllm(str(artifact), flags=flags, options=VllmOptions(model=str(model)))) as running:
        found = [each["tens"] for each in running.scores(PROMPTS)]
    wanted = expected(loaded, guard)
    assert [each.reading for each in found] == [reading for reading, _ in wanted]
    assert [each.score for each in found] == pytest.approx([score for _, score in wanted], abs=1e-3)
