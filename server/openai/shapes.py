"""How the two endpoints spell an answer: what differs between a chat and a text completion, and only that."""

from collections.abc import Sequence
from typing import Protocol

from server.engines.events import TokenLogprob
from server.engines.tools import Parsed, ParsedPiece, ToolCallPiece
from server.openai.prompts import TokenRow, finite


class AnswerShape(Protocol):
    """One endpoint's spelling. Each method gives the endpoint's own part of a choice."""

    id_prefix: str
    whole_object: str
    chunk_object: str
    prompt_of_each: bool
    """Whether every choice has the log-probabilities of its prompt, or the answer has them once."""

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
    prompt_of_each = False

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
    prompt_of_each = True

    def whole(self, answer: Parsed, logprobs: Sequence[TokenLogprob] | None, as_refusal: bool) -> dict[str, object]:
        return self.text(answer.content, None if logprobs is None else token_rows(logprobs))

    def text(self, text: str, rows: Sequence[TokenRow] | None, offset: int = 0) -> dict[str, object]:
        """Any text with the log-probabilities of its tokens, `offset` characters after the beginning."""
        return {"text": text, "logprobs": _spelled(rows, offset)}

    def opening(self, may_refuse: bool) -> None:
        return None

    def piece(self, piece: ParsedPiece, logprobs: Sequence[TokenLogprob] | None, offset: int) -> dict[str, object]:
        return self.text(piece.content, None if logprobs is None else token_rows(logprobs), offset)

    def withheld(self, text: str, separator: str, as_refusal: bool) -> dict[str, object]:
        return {"text": separator + text, "logprobs": None}

    def closing(self) -> dict[str, object]:
        return {"text": "", "logprobs": None}


def token_rows(logprobs: Sequence[TokenLogprob] | None) -> list[TokenRow]:
    """Drawn tokens as rows; none without log-probabilities."""
    return [
        TokenRow(
            drawn.token,
            finite(drawn.logprob),
            {token: finite(logprob) for token, _, logprob in drawn.top} | {drawn.token: finite(drawn.logprob)},
        )
        for drawn in logprobs or ()
    ]


def _spelled(rows: Sequence[TokenRow] | None, offset: int) -> dict[str, object] | None:
    if rows is None:
        return None
    offsets = []
    for row in rows:
        offsets.append(offset)
        offset += len(row.token)
    return {
        "tokens": [row.token for row in rows],
        "token_logprobs": [row.logprob for row in rows],
        "top_logprobs": [row.top for row in rows],
        "text_offset": offsets,
    }


def _call_piece(call: ToolCallPiece) -> dict[str, object]:
    """A call's first piece says which call it is; later ones only go on with its arguments."""
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _token(token: str, token_bytes: bytes, logprob: float) -> dict[str, object]:
    return {"token": token, "logprob": finite(logprob), "bytes": list(token_bytes)}
