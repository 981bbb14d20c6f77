"""How the two endpoints spell an answer: what differs between a chat and a text completion, and only that."""

from collections.abc import Sequence
from typing import Protocol

from server.engines.base import TokenLogprob
from server.engines.tools import Parsed, ParsedPiece, ToolCallPiece

_LEAST_LOGPROB = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON cannot hold."""


class AnswerShape(Protocol):
    """One endpoint's spelling. Each method gives the endpoint's own part of a choice."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def whole(self, answer: Parsed, logprobs: Sequence[TokenLogprob] | None, as_refusal: bool) -> dict[str, object]:
        """A choice that is not streamed. `as_refusal`: its text is a refusal, where there is a field for that."""
        ...

    def opening(self, may_refuse: bool) -> dict[str, object] | None:
        """What a streamed choice begins with, if anything. `may_refuse`: a refusal may follow, with no content."""
        ...

    def piece(self, piece: ParsedPiece, logprobs: Sequence[TokenLogprob] | None, offset: int) -> dict[str, object]:
        """More of a streamed choice, of which `offset` characters were sent before."""
        ...

    def withheld(self, text: str, separator: str, as_refusal: bool) -> dict[str, object]:
        """The operator's text in a streamed choice; `separator` sets it off from what was sent before it as content."""
        ...

    def closing(self) -> dict[str, object]:
        """A streamed choice's last part."""
        ...


class ChatShape:
    """chat.completion"""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, answer: Parsed, logprobs: Sequence[TokenLogprob] | None, as_refusal: bool) -> dict[str, object]:
        text = None if answer.calls and not answer.content else answer.content
        message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
        if as_refusal:
            message |= {"content": None, "refusal": text}
        if answer.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in answer.calls
            ]
        return {"message": message, "logprobs": self._logprobs(logprobs)}

    def opening(self, may_refuse: bool) -> dict[str, object]:
        content = None if may_refuse else ""
        return {"delta": {"role": "assistant", "content": content, "refusal": None}, "logprobs": None}

    def piece(self, piece: ParsedPiece, logprobs: Sequence[TokenLogprob] | None, offset: int) -> dict[str, object]:
        delta: dict[str, object] = {}
        if piece.content or not piece.calls:
            delta["content"] = piece.content
        if piece.calls:
            delta["tool_calls"] = [_call_piece(call) for call in piece.calls]
        return {"delta": delta, "logprobs": self._logprobs(logprobs)}

    def withheld(self, text: str, separator: str, as_refusal: bool) -> dict[str, object]:
        return {"delta": {"refusal": text} if as_refusal else {"content": separator + text}, "logprobs": None}

    def closing(self) -> dict[str, object]:
        return {"delta": {}, "logprobs": None}

    def _logprobs(self, logprobs: Sequence[TokenLogprob] | None) -> dict[str, object] | None:
        if logprobs is None:
            return None
        content = [
            {
                **_token(drawn.token, drawn.token_bytes, drawn.logprob),
                "top_logprobs": [_token(*alternative) for alternative in drawn.top],
            }
            for drawn in logprobs
        ]
        return {"content": content, "refusal": None}


class CompletionShape:
    """text_completion"""

    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def whole(self, answer: Parsed, logprobs: Sequence[TokenLogprob] | None, as_refusal: bool) -> dict[str, object]:
        return {"text": answer.content, "logprobs": self._logprobs(logprobs, offset=0)}

    def opening(self, may_refuse: bool) -> None:
        return None

    def piece(self, piece: ParsedPiece, logprobs: Sequence[TokenLogprob] | None, offset: int) -> dict[str, object]:
        return {"text": piece.content, "logprobs": self._logprobs(logprobs, offset)}

    def withheld(self, text: str, separator: str, as_refusal: bool) -> dict[str, object]:
        return {"text": separator + text, "logprobs": None}

    def closing(self) -> dict[str, object]:
        return {"text": "", "logprobs": None}

    def _logprobs(self, logprobs: Sequence[TokenLogprob] | None, offset: int) -> dict[str, object] | None:
        if logprobs is None:
            return None
        offsets = []
        for drawn in logprobs:
            offsets.append(offset)
            offset += len(drawn.token)
        return {
            "tokens": [drawn.token for drawn in logprobs],
            "token_logprobs": [_finite(drawn.logprob) for drawn in logprobs],
            "top_logprobs": [
                {token: _finite(logprob) for token, _, logprob in drawn.top} | {drawn.token: _finite(drawn.logprob)}
                for drawn in logprobs
            ],
            "text_offset": offsets,
        }


def _call_piece(call: ToolCallPiece) -> dict[str, object]:
    """A call's first piece says which call it is; later ones only go on with its arguments."""
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _token(token: str, token_bytes: bytes, logprob: float) -> dict[str, object]:
    return {"token": token, "logprob": _finite(logprob), "bytes": list(token_bytes)}


def _finite(logprob: float) -> float:
    return logprob if logprob > _LEAST_LOGPROB else _LEAST_LOGPROB  # a NaN too
