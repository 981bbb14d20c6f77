"""Key Space Detection, measured on the demo: does a cube around one skill's keys keep the other skills out?

A key is the input of a layer's `mlp.down_proj` at the last prompt token of the chat frame. The cube's centre
and widths come from one half of a skill's calibration prompts, its size from the other half.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from artifacts.demo.build.inference import encoded_batches
from artifacts.demo.build.rows import Row

_RECALL = 0.99
_FLOOR = 0.01


def separation_table(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    calibration: dict[str, list[Row]],
    test: dict[str, list[Row]],
) -> str:
    """Per layer, each cube's recall on its own test rows and its worst firing rate on another skill's."""
    calibration_keys = {skill: keys_per_layer(model, tokenizer, rows) for skill, rows in calibration.items()}
    test_keys = {skill: keys_per_layer(model, tokenizer, rows) for skill, rows in test.items()}
    lines = ["key space detection: recall / worst false rate (on which skill), per layer"]
    for layer in range(model.config.num_hidden_layers):
        lines.append(f"layer {layer}")
        for skill in calibration:
            mean_F, width_F, threshold = fit_cube(calibration_keys[skill][layer])
            rates = {
                name: (cube_score(keys[layer], mean_F, width_F) <= threshold).double().mean().item()
                for name, keys in test_keys.items()
            }
            recall = rates.pop(skill)
            worst = max(rates, key=rates.__getitem__)
            lines.append(f"  {skill:12} {recall:.3f} / {rates[worst]:.3f} ({worst}), threshold {threshold:.2f}")
    return "\n".join(lines)


def fit_cube(key_NF: Tensor) -> tuple[Tensor, Tensor, float]:
    """Centre, widths and threshold. The halves are alternate rows, as rows come in no particular order."""
    fit_NF, rest_NF = key_NF[::2], key_NF[1::2]
    mean_F, width_F = fit_NF.mean(0), fit_NF.std(0)
    width_F = width_F.clamp_min(_FLOOR * width_F.median().item())
    return mean_F, width_F, cube_score(rest_NF, mean_F, width_F).quantile(_RECALL).item()


def cube_score(key_NF: Tensor, mean_F: Tensor, width_F: Tensor) -> Tensor:
    """The largest distance from the centre over all neurons, in widths."""
    return ((key_NF - mean_F).abs() / width_F).amax(-1)


@torch.inference_mode()
def keys_per_layer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> list[Tensor]:
    """For each layer, one key vector per row in float64."""
    found: list[list[Tensor]] = [[] for _ in range(model.config.num_hidden_layers)]

    def keep(layer: int, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[layer].append(inputs[0][:, -1].double())

    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(partial(keep, index))
        for index, layer in enumerate(model.model.layers)
    ]
    try:
        for inputs in encoded_batches(tokenizer, [row.prompt for row in rows]):
            model.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(keys) for keys in found]
