"""The model run on batches of prompts, in the frames the demo is trained for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import BatchEncoding, LlamaForCausalLM, PreTrainedTokenizerFast

from artifacts.demo.build.corpus import completion_prompt

_BATCH = 60
_NEW_TOKENS = 100


def encoded_batches(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *, completion: bool = False
) -> Iterator[BatchEncoding]:
    """Framed prompts padded on the left, so that the last position is each prompt's last token."""
    for start in range(0, len(prompts), _BATCH):
        part = prompts[start : start + _BATCH]
        texts = [completion_prompt(prompt) if completion else _chat_text(tokenizer, prompt) for prompt in part]
        yield tokenizer(texts, padding=True, padding_side="left", add_special_tokens=completion, return_tensors="pt")


@torch.inference_mode()
def greedy_answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    completion: bool = False,
) -> list[str]:
    """The model's answer to each prompt on its own."""
    answers: list[str] = []
    for inputs in encoded_batches(tokenizer, prompts, completion=completion):
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
        )
        answers += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def _chat_text(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    message = {"role": "user", "content": prompt}
    return str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
