"""A chat's answer as a response, whole or as events.

    how the answer ended                    status       last event            incomplete_details.reason
    by itself, or by calls                  completed    response.completed    -
    at the token limit                      incomplete   response.incomplete   max_output_tokens
    withheld, style `content_filter`        incomplete   response.incomplete   content_filter
    withheld, style `refusal`               completed    response.completed    -
    an error after the first event          failed       response.failed       -

The operator's text is there once: as text under `content_filter`, and as a part `refusal` under `refusal`. A withheld
answer has a `guard`, and no calls in its `output`. An error before the first event has its own status, and so has a
withheld answer under the style `error`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server.engines.events import Finish
from server.errors import AbstainedError, error_body
from server.openai.answers import AnswerJob
from server.openai.responses.output import Event, Output
from server.openai.responses.request import ResponsesRequest
from server.openai.shapes import ChatShape
from server.openai.wire import dumped

_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Of a chat's finish reasons those that leave a response incomplete."""


class ResponseShape(ChatShape):
    """Answers are a chat's until they are sent."""

    id_prefix = "resp_"


class ResponsesWire:
    """One response. Made of the chat's completion, so that it says nothing which that would not say."""

    def __init__(self, job: AnswerJob, body: ResponsesRequest) -> None:
        self._job = job
        self._body = body
        self._output = Output(job.id)
        self._finish_reason: str | None = None
        self._guard: Mapping[str, object] | None = None
        self._sent = 0

    def whole(self, completion: Mapping[str, Any]) -> Mapping[str, object]:
        (choice,) = completion["choices"]
        self._note(choice)
        for _ in (*self._taken(choice, choice["message"]), *self._closed()):
            pass
        return self._ended(completion["usage"], completion.get("moderation"))

    def chunks(self, chunks: Sequence[Mapping[str, Any]]) -> bytes:
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        for choice in choices:  # first, since the last of them says why there is no more
            self._note(choice)
        return self._opening() + b"".join(self._events(self._taken(choice, choice["delta"])) for choice in choices)

    def end(self, finishes: Sequence[Finish]) -> bytes:
        closing = self._events(self._closed())
        moderation = None if self._job.moderation is None else self._job.moderation.told(finishes)
        response = self._ended(self._job.usage(finishes), moderation)
        return closing + self._events([{"type": f"response.{response['status']}", "response": response}])

    def failed(self, error: Exception, request_id: str) -> bytes:
        told = error_body(error, request_id)["error"]
        assert isinstance(told, dict), "OpenAI's error object"
        withheld = isinstance(error, AbstainedError)
        code = "invalid_prompt" if withheld else "server_error"  # the nearest of OpenAI's own
        for _ in self._output.close("incomplete") if self._output.items else ():
            pass
        response = self._response("failed", error={"code": code, "message": told["message"]})
        response["output"] = self._output.without_calls()
        if withheld:
            response["guard"] = told["guard"]
        return self._opening() + self._events([{"type": "response.failed", "response": response}])

    def _opening(self) -> bytes:
        if self._sent:
            return b""
        response = self._response("in_progress")
        kinds = ("response.created", "response.in_progress")
        return self._events([{"type": kind, "response": response} for kind in kinds])

    def _note(self, choice: Mapping[str, Any]) -> None:
        self._finish_reason = choice["finish_reason"] or self._finish_reason
        self._guard = choice.get("guard", self._guard)
        self._output.withheld = self._guard is not None

    def _taken(self, choice: Mapping[str, Any], message: Mapping[str, Any]) -> Iterable[Event]:
        logprobs = choice["logprobs"]
        return self._output.take(message, () if logprobs is None else logprobs["content"])

    def _closed(self) -> Iterable[Event]:
        return self._output.close("incomplete" if self._finish_reason in _REASONS else "completed")

    def _ended(self, usage: Mapping[str, Any], moderation: Mapping[str, Any] | None) -> dict[str, object]:
        reason = _REASONS.get(self._finish_reason or "")
        response = self._response("completed" if reason is None else "incomplete", usage=_usage(usage))
        if reason is not None:
            response["incomplete_details"] = {"reason": reason}
        if self._guard is not None:
            response |= {"output": self._output.without_calls(), "guard": self._guard}
        if moderation is not None:  # a response has one result of each side
            response["moderation"] = {side: told["results"][0] for side, told in moderation.items()}
        return response

    def _response(self, status: str, **fields: object) -> dict[str, object]:
        body, sampling = self._body, self._job.requests[0].sampling
        return {
            "id": self._job.id,
            "object": "response",
            "created_at": self._job.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._job.model,
            "output": self._output.items,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "text": {"format": body.text_format.shown()},
            "tools": [tool.shown() for tool in body.tools or ()],
            "tool_choice": "auto" if body.tool_choice is None else body.tool_choice.shown(),
            "reasoning": {"effort": body.effort, "summary": None},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "metadata": body.metadata or {},
            "background": False,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **fields,
        }

    def _events(self, events: Iterable[Event]) -> bytes:
        written = b""
        for event in events:
            data = dumped({**event, "sequence_number": self._sent})
            written += b"event: " + event["type"].encode() + b"\ndata: " + data + b"\n\n"
            self._sent += 1
        return written


def _usage(usage: Mapping[str, Any]) -> dict[str, object]:
    """Token counts under their names here. Nothing is said of caches, and no model here thinks apart."""
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
