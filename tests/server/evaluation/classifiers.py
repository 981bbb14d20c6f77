"""Tiny random-weight sequence classifiers, built from their configurations; no file, no network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.guards.tiny import tiny_tokenizer

_SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
KINDS: dict[str, dict[str, Any]] = {
    "bert": {**_SIZES, "num_attention_heads": 4, "max_position_embeddings": 40},
    "roberta": {**_SIZES, "num_attention_heads": 4, "max_position_embeddings": 40, "pad_token_id": 0},
    "distilbert": {"vocab_size": 64, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4},
    "llama": {**_SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0},
    "gpt2": {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
LABELS = ("neutral", "toxic", "rude")


def save_classifier(folder: Path, kind: str = "bert", labels: Sequence[str] = LABELS, **changes: Any) -> Path:
    """A folder as `save_pretrained` writes one; its answers differ by more than rounding."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, **KINDS[kind], id2label=dict(enumerate(labels)), **changes)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    model.save_pretrained(folder)
    tiny_tokenizer(None).save_pretrained(folder)
    return folder
