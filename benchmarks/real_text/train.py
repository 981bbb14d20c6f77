"""Trains the model: a small Llama on next tokens, and nothing but next tokens.

Weights and optimizer are float32, matrices are multiplied in bfloat16.
"""

import logging
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from artifacts.demo.build.tokenizer import CONTEXT_TOKENS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Everything that, with data and seed, decides the weights."""

    pieces: int = 8192
    hidden: int = 288
    intermediate: int = 896
    layers: int = 8
    heads: int = 6
    steps: int = 2200
    rows: int = 8
    """Rows a step."""
    tokens: int = 256
    """Tokens a row that are predicted."""
    rate: float = 1.5e-3
    last_rate: float = 1e-4
    weight_decay: float = 0.1
    warmup_steps: int = 100

    def rate_at(self, step: int) -> float:
        """Linear up to `rate`, then a cosine down to `last_rate`."""
        if step < self.warmup_steps:
            return self.rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.last_rate + (self.rate - self.last_rate) * (1 + math.cos(math.pi * progress)) / 2


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> LlamaForCausalLM:
    """An untrained model; of 11 million parameters with the default recipe."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=recipe.pieces,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; norms do not decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    norms = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95))


def _loss(model: LlamaForCausalLM, row_RL: Tensor) -> Tensor:
    ids_RL = row_RL.long()
    with torch.autocast(ids_RL.device.type, torch.bfloat16):
        logits_RTV = model(input_ids=ids_RL[:, :-1], use_cache=False).logits
    return cross_entropy(logits_RTV.flatten(0, 1).float(), ids_RL[:, 1:].flatten())


def _save(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train(
    model: LlamaForCausalLM, packed_RL: Tensor, recipe: Recipe, checkpoint: Path, minutes_between_saves: float = 5
) -> None:
    """Trains in place on rows in their order, from `checkpoint` on where there is one; leaves one at the end.

    `packed_RL`: [steps x rows, tokens + 1]. Stopped and started again it ends at the same weights. Raises ValueError
    where the checkpoint is another recipe's.
    """
    optimizer = _optimizer(model, recipe)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise ValueError(f"{checkpoint}: got recipe {state['recipe']}, wanted {asdict(recipe)}; use another folder")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    started = saved = time.monotonic()
    model.train()
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        loss = _loss(model, packed_RL[step * recipe.rows : (step + 1) * recipe.rows])
        if not torch.isfinite(loss):
            raise ValueError(f"step {step}: got loss {loss.item()}, wanted a finite one; lower the rate")
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done, now = step + 1, time.monotonic()
        if done % 20 == 0 or done == recipe.steps:
            left = (now - started) / (done - first) * (recipe.steps - done)
            logger.info("step %d of %d, loss %.4f, %.0f min left", done, recipe.steps, loss.item(), left / 60)
        if now - saved > 60 * minutes_between_saves or done == recipe.steps:
            _save(
                checkpoint,
                {
                    "recipe": asdict(recipe),
                    "step": done,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
            )
            saved = now
