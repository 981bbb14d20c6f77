"""What `load_model` accepts, and what it refuses before any weight is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from guards.artifact.identity import tokenizer_sha256
from guards.errors import UnsupportedModelError
from guards.inside.transformers.loading import load_model, resolve_dtype
from guards.model.folder import resolve_folder
from guards.model.weights import weights_sha256
from tests.guards.tiny import save_tiny, tiny_tokenizer
from tests.models import WRAPPED, tiny_config, tokens

VISION: dict[str, dict[str, Any]] = {
    "qwen3_5": {"depth": 1, "num_heads": 2, "out_hidden_size": 16, "num_position_embeddings": 16},
    "qwen3_5_moe": {"depth": 1, "num_heads": 2, "out_hidden_size": 16, "num_position_embeddings": 16},
    "mistral3": {"model_type": "pixtral", "image_size": 32, "patch_size": 8, "head_dim": 4},
    "gemma3": {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8},
}
SEEN: dict[str, dict[str, Any]] = {"gemma3": {"mm_tokens_per_image": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


def test_loads_a_folder(folder: Path) -> None:
    loaded = load_model(folder, "cpu")
    assert loaded.identity.model_dump() == {
        "architecture": "LlamaForCausalLM",
        "layers": 3,
        "d_model": 16,
        "d_ff": 24,
        "dtype": "float32",
        "tokenizer_sha256": tokenizer_sha256(folder),
        "weights_sha256": weights_sha256(folder),
        "quantization": None,
    }
    assert loaded.codec.chat.serves
    assert (loaded.device.type, loaded.max_tokens) == ("cpu", 64)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert load_model(folder, "cpu", "bfloat16").identity.dtype == "bfloat16"


def _copy(source: Path, target: Path, *, without: str | None = None, config: dict[str, Any] | None = None) -> Path:
    target.mkdir()
    for path in source.iterdir():
        if path.name != without:
            (target / path.name).write_bytes(path.read_bytes())
    if config:
        kept = json.loads((source / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**kept, **config}))
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"without": "config.json"}, "got no config.json"),
        ({"without": "model.safetensors"}, "got no .safetensors file"),
        ({"config": {"model_type": "bert"}}, "model type 'bert' has no known sites; known: gemma"),
        ({"config": {"num_local_experts": 4}}, "is a mixture of experts"),
        ({"config": {"model_type": "never_heard_of"}}, "transformers does not understand it"),
        ({"config": {"quantization_config": {"quant_method": "gptq", "bits": 4}}}, "quantised checkpoints"),
    ],
)
def test_refuses_a_model(folder: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(_copy(folder, tmp_path / "copy", **changes), "cpu")


def test_a_damaged_weight_file_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = _copy(folder, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UnsupportedModelError, match="the weights cannot be loaded"):
        load_model(copy, "cpu")


def test_a_weight_that_is_missing_is_not_made_up(folder: Path, tmp_path: Path) -> None:
    copy = _copy(folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"first 'model\.layers\.1\.mlp\.down_proj\.weight'"):
        load_model(copy, "cpu")


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_a_path_that_is_missing_is_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="no such folder"):
        resolve_folder(name)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta", "nonsense:1"])
def test_refuses_a_device(folder: Path, device: str) -> None:
    with pytest.raises(UnsupportedModelError, match="got device"):
        load_model(folder, device)


def test_the_dtype_follows_the_device() -> None:
    config = tiny_config("llama", dtype=torch.bfloat16)
    assert resolve_dtype(None, config, torch.device("cpu")) is torch.float32
    assert resolve_dtype(None, config, torch.device("cuda")) is torch.bfloat16
    assert resolve_dtype("float16", config, torch.device("cpu")) is torch.float16
    with pytest.raises(UnsupportedModelError, match="got dtype 'int8', wanted one of float32"):
        resolve_dtype("int8", config, torch.device("cpu"))


@pytest.mark.parametrize(("kind", "inner"), WRAPPED.items())
def test_of_a_model_that_also_sees_the_text_model_is_loaded(kind: str, inner: str, tmp_path: Path) -> None:
    """It says of a text what the whole model says, and is named as the whole model is."""
    text = tiny_config(inner).to_dict()
    seeing = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(
            kind, text_config=text, vision_config={**seeing, **VISION.get(kind, {})}, **SEEN.get(kind, {})
        )
    ).eval()
    whole.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(tmp_path, "cpu")
    assert loaded.model.config.model_type == inner
    assert loaded.identity.architecture == type(whole).__name__
    assert not any("vision" in name for name, _ in loaded.model.named_modules())
    with torch.no_grad():
        ids = tokens(1, 12)
        torch.testing.assert_close(loaded.model(ids).logits, whole(ids).logits, rtol=1e-4, atol=1e-4)
