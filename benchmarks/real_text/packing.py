"""Training documents as tokens: the tokenizer, and rows of equal length."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from artifacts.demo.build import tokenizer as demo

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role'] + ': expected system, user or assistant') }}"
    "{% endif %}"
    "{{ message['role'] + ': ' + message['content'] | trim + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
"""Turns in plain words, one of `formats.ANSWERED`: roles need no tokens of their own."""


def train_tokenizer(texts: Iterable[str], pieces: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `pieces` pieces with one token a digit; every encoded text begins with BOS."""
    tokenizer = demo.train_tokenizer(texts, pieces)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def pack(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], rows: int, length: int) -> Tensor:
    """The first `rows` rows [rows, length] of int16 token ids.

    Documents lie one behind the other, each between BOS and EOS. What a row cuts off goes on in the next, behind a BOS
    of its own, so that every row begins as a prompt does. Raises ValueError when the texts end too early.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    packed_RL = torch.empty(rows, length, dtype=torch.int16)
    done = 0
    row: list[int] = []
    for text in texts:
        for token in (bos, *tokenizer(text, add_special_tokens=False)["input_ids"], eos):
            if not row and token != bos:
                row.append(bos)
            row.append(token)
            if len(row) == length:
                packed_RL[done] = torch.tensor(row, dtype=torch.int16)
                row, done = [], done + 1
                if done == rows:
                    return packed_RL
    raise ValueError(f"got texts for {done} rows of {length} tokens, wanted {rows}")
