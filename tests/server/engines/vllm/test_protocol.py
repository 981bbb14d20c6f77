"""vLLM's own requests: each of their fields is known here, and asks for nothing here either at its default."""

from importlib import import_module
from typing import Any

import pytest

from server.openai import ChatRequest, CompletionRequest
from server.openai.common import SamplingBody
from server.openai.responses.request import ResponsesRequest

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}
ITEMS: dict[str, Any] = {"model": "m", "input": "hi"}
PROMISES_MORE = {"store"}
"""Of whose defaults vLLM keeps less than they say: nothing is stored there either, unless it is told to."""


@pytest.mark.parametrize(
    ("kind", "name", "ours", "body"),
    [
        ("chat_completion", "ChatCompletionRequest", ChatRequest, CHAT),
        ("completion", "CompletionRequest", CompletionRequest, TEXT),
        ("responses", "ResponsesRequest", ResponsesRequest, ITEMS),
    ],
)
def test_defaults_of_vllm(kind: str, name: str, ours: type[SamplingBody], body: dict[str, Any]) -> None:
    theirs = getattr(import_module(f"vllm.entrypoints.openai.{kind}.protocol"), name).model_fields
    assert theirs.keys() - ours.field_names() - ours.not_honoured.keys() == set()
    for field, about in theirs.items():
        if field not in body and (ours is not ResponsesRequest or field not in PROMISES_MORE):
            ours.model_validate({**body, field: about.get_default(call_default_factory=True)})
