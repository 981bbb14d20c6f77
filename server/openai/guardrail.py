"""LiteLLM's generic guardrail, `POST /beta/litellm_basic_guardrail_api`, as litellm 1.110 sends it.

All that is text is judged: `texts`, the arguments of `tool_calls` and the definitions of `tools`. `structured_messages`
hold the same texts again, and also what LiteLLM takes no text of: what of that is text is judged, and files, audio and
video are refused as images are. What says who asked is neither needed nor kept. An answer is NONE or BLOCKED, never
GUARDRAIL_INTERVENED: LiteLLM drops rewritten texts of a stream unless it is configured otherwise, so what should have
been replaced would go out.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import model_validator

from server.openai.body import Body, Listed, Text, encodable
from server.openai.invalid import conflict
from server.openai.moderation import MAX_TEXTS
from server.openai.structure import object_text

_WORDS = ("refusal", "thinking", "reasoning", "reasoning_content")
"""Where a message, or a part of one, holds text that LiteLLM leaves out of `texts`."""
_SPOKEN = {"text", "input_text", "output_text", "refusal", "thinking", "reasoning"}
"""Types of parts that are text and nothing else."""
_SPOKEN_KEYS = {"type", "text", *_WORDS, "signature", "cache_control"}
_CALL = {"id", "index", "type", "function"}
_FUNCTION = {"name", "arguments"}


class GuardrailRequest(Body):
    """What a proxy is about to send to a model (`request`), or has heard of one (`response`)."""

    input_type: Literal["request", "response"]
    texts: Listed[Text] | None = None
    tool_calls: Listed[dict[str, Any]] | None = None
    tools: Listed[dict[str, Any]] | None = None
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
        if not _holds_messages(self.structured_messages) or not all(map(_is_text, self._parts)):
            raise conflict("structured_messages", "'{field}' hold what cannot be judged: only text can.")
        object_text({"tools": self.tools})
        if len(self.judged) > MAX_TEXTS:
            raise conflict("texts", f"'{{field}}' and calls are {len(self.judged)} texts, wanted at most {MAX_TEXTS}.")
        if self.additional_provider_specific_params:
            raise conflict(
                "additional_provider_specific_params", "'{field}' cannot change how texts are judged; leave them out."
            )
        return self

    @cached_property
    def judged(self) -> tuple[str, ...]:
        """The texts to judge. All definitions of tools are one, as JSON."""
        calls = map(_written, (*(self.tool_calls or ()), *self._older_calls))
        definitions = [json.dumps(self.tools, ensure_ascii=False)] if self.tools else []
        words = [
            encodable(each[key])
            for each in (*self._messages, *self._parts)
            for key in _WORDS
            if isinstance(each.get(key), str)
        ]
        return (*(self.texts or ()), *calls, *definitions, *words)

    @property
    def _messages(self) -> Listed[dict[str, Any]]:
        return list(self.structured_messages or ())

    @property
    def _parts(self) -> Listed[dict[str, Any]]:
        contents = [message.get("content") for message in self._messages]
        return [part for content in contents if isinstance(content, list) for part in content]

    @property
    def _older_calls(self) -> Listed[dict[str, Any]]:
        """Calls as they were before `tool_calls`."""
        return [{"function": call} for each in self._messages if isinstance(call := each.get("function_call"), dict)]


def _holds_messages(sent: Any) -> bool:
    """Whether these are messages whose content is a text or a list of parts: of another form, a model may take more."""
    return sent is None or (
        isinstance(sent, list)
        and all(isinstance(message, dict) and _holds_parts(message.get("content")) for message in sent)
    )


def _holds_parts(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(part, dict) for part in content)
    return content is None or isinstance(content, str)


def _is_text(part: Mapping[str, Any]) -> bool:
    """Whether all that a model could take of it is judged: a file with a `text` beside it is a file."""
    said = [part[key] for key in ("text", *_WORDS) if part.get(key) is not None]
    return (
        str(part.get("type", "text")) in _SPOKEN
        and bool(said)
        and all(isinstance(each, str) for each in said)
        and all(key in _SPOKEN_KEYS or not value for key, value in part.items())
    )


def _written(call: Mapping[str, Any]) -> str:
    """A call's function and arguments, a line each; one of another form, or that says more, as JSON."""
    match call:
        case {"function": {"name": str(name), "arguments": str(arguments)} as function} if (
            call.keys() <= _CALL and function.keys() <= _FUNCTION
        ):
            return encodable(f"{name}\n{arguments}")
        case _:
            return object_text(call)
