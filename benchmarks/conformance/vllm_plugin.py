"""A pytest plugin for vLLM's tests: they fetch the served model's folder, and have transformers' tokenizers."""

import os
import sys
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest
from transformers import AutoTokenizer


def get_tokenizer(tokenizer_name: str, **_: Any) -> Any:
    """As `vllm.transformers_utils.tokenizer` had it."""
    return AutoTokenizer.from_pretrained(tokenizer_name, trust_remote_code=False)


def pytest_configure(config: pytest.Config) -> None:
    """Before anything of theirs is imported."""
    module: Any = ModuleType("vllm.transformers_utils.tokenizer")
    module.get_tokenizer = get_tokenizer
    sys.modules[module.__name__] = module
    hub: Any = huggingface_hub
    hub.snapshot_download = lambda *_, **__: os.environ["SKILLGUARD_MODEL"]
