"""Lets a model answer prompts greedily, many at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from guards.calibration.activations import TokenIds
from guards.errors import CalibrationError, UnsupportedModelError
from guards.inside.transformers.capture import plan_batches

BATCH_TOKENS = {"cpu": 8192, "cuda": 32768}
"""Of prompts and answers together, padded; halved where a device's memory is less."""


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-text token ids, the model's and the tokenizer's, as in vLLM.

    Raises UnsupportedModelError when neither names one.
    """
    named = (model.generation_config.eos_token_id, tokenizer.eos_token_id)
    found = {token for each in named for token in (each if isinstance(each, list | tuple) else [each])} - {None}
    if not found:
        raise UnsupportedModelError("the model names no end-of-text token (eos_token_id); set one in its configuration")
    return frozenset(int(token) for token in found)


@torch.no_grad()
def write(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[TokenIds],
    tokens: int,
    advance: Callable[[int], object] = lambda _: None,
) -> list[TokenIds]:
    """The model's own answers, of at most so many tokens, without the token that ends one.

    Raises CalibrationError where the memory is too little for one answer alone.
    """
    from transformers import GenerationConfig

    ends = stop_ids(model, tokenizer)
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=sorted(ends), pad_token_id=0)
    device = next(iter(model.parameters())).device
    answers: list[TokenIds] = [()] * len(prompts)
    budget = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
    waiting = list(range(len(prompts)))
    while waiting:
        group = [waiting[at] for at in plan_batches([len(prompts[index]) + tokens for index in waiting], budget)[0]]
        longest = max(len(prompts[index]) for index in group)
        rows = [[0] * (longest - len(prompts[index])) + list(prompts[index]) for index in group]
        mask = [[0] * (longest - len(prompts[index])) + [1] * len(prompts[index]) for index in group]
        try:
            written = model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=settings,
            )
        except torch.OutOfMemoryError as error:
            if len(group) == 1:
                raise CalibrationError(
                    f"out of memory with one prompt of {longest} tokens and an answer of {tokens}: give shorter "
                    "examples, or a device with more memory"
                ) from error
            budget = len(group) * (longest + tokens) // 2
            continue  # once what the error holds is let go of
        for index, row in zip(group, written[:, longest:].tolist(), strict=True):
            end = next((at for at, token in enumerate(row) if token in ends), len(row))
            answers[index] = tuple(row[:end])
        advance(sum(len(prompts[index]) + tokens for index in group))
        waiting = sorted(set(waiting).difference(group))
    return answers
