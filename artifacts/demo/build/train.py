"""Trains the demo model on two cores: a small Llama that learns answers only, mostly with Muon."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from artifacts.demo.build.corpus import conversations
from artifacts.demo.build.encoding import Encoder, batches
from artifacts.demo.build.objective import collate, last_keys, losses
from artifacts.demo.build.tokenizer import CONTEXT_TOKENS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that, with the seed, decides the weights."""

    steps: int = 2200
    batch_tokens: int = 2560
    matrix_rate: float = 0.01
    other_rate: float = 3e-3
    weight_decay: float = 0.05
    compactness: float = 0.05
    """Weight of `objective.within_share`; 0 trains on answers alone."""
    warmup_steps: int = 100
    decay_share: float = 0.85
    """Last share of the run over which rates fall linearly to zero; what is learnt late is learnt then."""
    minutes: float | None = None
    """A cap on wall-clock time: rates fall in time to end by then. A run it hurries is not repeatable."""
    minutes_between_saves: float = 8.0


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained model of about 4.5 million parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    seed: int,
    without: Collection[str],
    save: Callable[[LlamaForCausalLM], None],
) -> None:
    """Train in place, calling `save` now and then and at the end. Prompts in `without` are never seen."""
    encoder = Encoder(tokenizer)
    stream = batches(
        (encoder.encode(conversation) for conversation in conversations(seed, without)),
        recipe.batch_tokens,
        random.Random(f"{seed}/batches"),
    )
    optimizers = _optimizers(model, recipe)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    started = saved = time.monotonic()
    model.train()
    with last_keys(model) as kept:
        for step in range(recipe.steps):
            elapsed = time.monotonic() - started
            progress = step / recipe.steps
            if recipe.minutes is not None:
                progress = max(progress, elapsed / (60 * recipe.minutes))
            if progress >= 1:
                logger.warning("out of time after %d of %d steps", step, recipe.steps)
                break
            scale = min(1.0, (step + 1) / recipe.warmup_steps, (1 - progress) / recipe.decay_share)
            for optimizer, rates in zip(optimizers, peaks, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * scale
            found = losses(model, collate(next(stream), tokenizer.pad_token_id), kept)
            total = found.answers + recipe.compactness * found.within
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if step % 50 == 49:
                logger.info("step %d, %.0f s, loss %.4f, within %.3f", step + 1, elapsed, *map(Tensor.item, found))
            if time.monotonic() - saved > 60 * recipe.minutes_between_saves:
                save(model)
                saved = time.monotonic()
    save(model)


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon orthogonalises the updates of the layers' matrices; embeddings and norms have no use for that."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.matrix_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="original",
            ns_steps=4,
        ),
        torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
