"""How an answer of a job goes out: whole, or piece by piece as server-sent events."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from pydantic_core import PydanticSerializationError, to_json

from server.engines.events import Finish
from server.errors import error_body
from server.openai.answers import AnswerJob

_DONE = b"data: [DONE]\n\n"
_PERHAPS_NO_JSON = (b"NaN", b"Infinity")
"""As a number, or in a text; `json` tells."""


class Wire(Protocol):
    """An endpoint's way to send one response. It is given completions and chunks of them, and shows nothing else."""

    def whole(self, completion: Mapping[str, Any]) -> Mapping[str, object]:
        """The body of a response that is not streamed."""
        ...

    def chunks(self, chunks: Sequence[Mapping[str, Any]]) -> bytes:
        """The events of the chunks that one event of the engine came to."""
        ...

    def end(self, finishes: Sequence[Finish]) -> bytes:
        """The events behind the last chunk of a stream in which every answer is complete."""
        ...

    def failed(self, error: Exception, request_id: str) -> bytes:
        """The events that end a stream by an error."""
        ...


class CompletionWire:
    """Completions as they are, an event for each chunk."""

    def __init__(self, job: AnswerJob) -> None:
        self._job = job

    def whole(self, completion: Mapping[str, Any]) -> Mapping[str, object]:
        return completion

    def chunks(self, chunks: Sequence[Mapping[str, Any]]) -> bytes:
        return b"".join(b"data: " + dumped(chunk) + b"\n\n" for chunk in chunks)

    def end(self, finishes: Sequence[Finish]) -> bytes:
        last = [self._job.moderation_chunk(finishes)] if self._job.moderation is not None else []
        if self._job.wants_usage_chunk:
            last.append(self._job.usage_chunk(finishes))
        return self.chunks(last) + _DONE

    def failed(self, error: Exception, request_id: str) -> bytes:
        return self.chunks([error_body(error, request_id)])


def dumped(data: Mapping[str, object]) -> bytes:
    """An event's data: JSON on one line, in ASCII, since some clients take other characters for the end of a line.

    Events are many and small, and pydantic's encoder takes a fifth of the time; it writes those that are of ASCII.
    Raises ValueError for a number that JSON has not.
    """
    with suppress(PydanticSerializationError):  # half of a surrogate pair, which JSON can escape
        written = to_json(data)
        if written.isascii() and not any(word in written for word in _PERHAPS_NO_JSON):
            return written
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
