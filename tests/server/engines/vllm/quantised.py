"""A Llama's linear layers quantised by hand, in formats that vLLM reads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
INT8: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}
"""W8A8: weights scaled by output channel, activations by token while the model runs."""
GROUP = 64
GPTQ: dict[str, Any] = {
    "quant_method": "gptq",
    "checkpoint_format": "gptq",
    "bits": 4,
    "group_size": GROUP,
    "desc_act": False,
    "sym": True,
    "lm_head": False,
}
"""W4A16: four bits a weight, scaled by groups of inputs."""


def save_int8(source: Path, folder: Path) -> Path:
    """8-bit weights and activations, in the format of compressed-tensors."""

    def quantise(name: str, weight: Tensor) -> dict[str, Tensor]:
        scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / 127
        return {f"{name}.weight": (weight / scale).round().to(torch.int8), f"{name}.weight_scale": scale}

    return _save(source, folder, INT8, quantise)


def save_gptq(source: Path, folder: Path) -> Path:
    """4-bit weights in GPTQ's format, rounded to the nearest."""

    def quantise(name: str, weight: Tensor) -> dict[str, Tensor]:
        outputs, inputs = weight.shape
        grouped = weight.view(outputs, inputs // GROUP, GROUP)
        scale = grouped.abs().amax(dim=2, keepdim=True).clamp_min(1e-8) / 7
        codes = ((grouped / scale).round() + 8).clamp(0, 15).long().view(outputs, inputs).T
        zeros = torch.full((inputs // GROUP, outputs), 7)  # the format stores one less
        return {
            f"{name}.qweight": _packed(codes.reshape(inputs // 8, 8, outputs).transpose(1, 2)),
            f"{name}.qzeros": _packed(zeros.view(inputs // GROUP, outputs // 8, 8)),
            f"{name}.scales": scale.view(outputs, -1).T.contiguous().bfloat16(),
            f"{name}.g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP,
        }

    return _save(source, folder, GPTQ, quantise)


def _packed(codes: Tensor) -> Tensor:
    """Eight 4-bit codes of the last dimension in one int32, the first lowest."""
    packed = (codes.long() << torch.arange(0, 32, 4)).sum(dim=-1)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def _save(
    source: Path, folder: Path, config: dict[str, Any], quantise: Callable[[str, Tensor], dict[str, Tensor]]
) -> Path:
    shutil.copytree(source, folder)
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            tensors.update(quantise(name.removesuffix(".weight"), weight.float()))
        else:
            tensors[name] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = (source / "config.json").read_text()
    (folder / "config.json").write_text(json.dumps({**json.loads(text), "quantization_config": config}))
    return folder
