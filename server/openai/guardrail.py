"""LiteLLM's generic guardrail, `POST /beta/litellm_basic_guardrail_api`, as litellm 1.110 sends it.

All that is text is judged: `texts`, the arguments of `tool_calls` and the definitions of `tools`. `structured_messages`
hold the same texts again. What says who asked is neither needed nor kept. An answer is NONE or BLOCKED, never
GUARDRAIL_INTERVENED: LiteLLM drops rewritten texts of a stream unless it is configured otherwise, so what should have
been replaced would go out.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from server.openai.body import Body, Text
from server.openai.invalid import conflict
from server.openai.moderation import MAX_TEXTS
from server.openai.structure import object_text


class GuardrailRequest(Body):
    """What a proxy is about to send to a model (`request`), or has heard of one (`response`)."""

    input_type: Literal["request", "response"]
    texts: list[Text] | None = Field(None, max_length=MAX_TEXTS)
    tool_calls: list[dict[str, Any]] | None = Field(None, max_length=MAX_TEXTS)
    tools: list[dict[str, Any]] | None = None
    images: list[Any] | None = None
    structured_messages: Any = None
    request_data: Any = None
    request_headers: Any = None
    litellm_call_id: Any = None
    litellm_trace_id: Any = None
    litellm_version: Any = None
    model: Any = None
    additional_provider_specific_params: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _all_can_be_judged(self) -> Self:
        if self.images:
            raise conflict("images", "'{field}' cannot be judged: only text can.")
        for call in self.tool_calls or ():
            object_text(call)
        object_text({"tools": self.tools})
        if self.additional_provider_specific_params:
            raise conflict(
                "additional_provider_specific_params", "'{field}' cannot change how texts are judged; leave them out."
            )
        return self

    @property
    def judged(self) -> list[str]:
        """The texts to judge. All definitions of tools are one, as JSON."""
        definitions = [json.dumps(self.tools, ensure_ascii=False)] if self.tools else []
        return [*(self.texts or ()), *map(_written, self.tool_calls or ()), *definitions]


def _written(call: Mapping[str, Any]) -> str:
    """A call's function and arguments, a line each; one of another form as JSON."""
    match call.get("function"):
        case {"name": str(name), "arguments": str(arguments)}:
            return f"{name}\n{arguments}"
        case _:
            return object_text(call)
