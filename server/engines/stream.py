"""One answer's events, made from the outputs that the batcher delivers for it."""

import asyncio
from collections.abc import Callable
from typing import Any

from guards.verdict import Verdict
from server.engines.base import Chunk, Event, EventStream, Finish, FinishReason
from server.engines.rows import Row
from server.engines.text import Detokenizer, StopFinder


class AnswerStream(EventStream):
    """Chunks, then exactly one Finish.

    `close(finished)` is called once, when the last event was given or the caller gives up before that; it is safe to
    abandon a stream that was never iterated as long as `aclose` is called.
    """

    def __init__(self, row: Row, tokenizer: Any, stop_ids: frozenset[int], close: Callable[[bool], None]) -> None:
        self.outputs: asyncio.Queue[Any] = asyncio.Queue()
        """transformers' GenerationOutput objects, or None when the engine stopped."""
        self._row, self._stop_ids = row, stop_ids
        self._text, self._stops = Detokenizer(tokenizer), StopFinder(row.request.sampling.stop)
        self._close: Callable[[bool], None] | None = close
        self._pending: list[Event] = []
        self._seen = 0

    async def __anext__(self) -> Event:
        while not self._pending:
            if self._close is None:
                raise StopAsyncIteration
            self._take(await self.outputs.get())
        return self._pending.pop(0)

    async def aclose(self) -> None:
        """Gives the answer up: a running request is cancelled. Safe to call twice."""
        self._end(finished=False)

    def _end(self, *, finished: bool) -> None:
        close, self._close = self._close, None
        if close is not None:
            close(finished)

    def _take(self, output: Any) -> None:
        """Turns one output into events."""
        if output is None:
            self._row.fail("the engine stopped")
            self._finish(FinishReason.ERROR, self._row.generated, ended=False)
            return
        ended = bool(output.is_finished())
        if output.error is not None:
            self._row.fail(f"the forward pass failed: {output.error}")
        if ended and self._row.outcome is not Verdict.ALLOW:
            abstained = self._row.outcome is Verdict.ABSTAIN
            reason = FinishReason.ABSTAIN if abstained else FinishReason.ERROR
            self._finish(reason, self._row.generated, ended=True)
            return
        for token in output.generated_tokens[self._seen :]:
            self._seen += 1
            final = ended and self._seen == len(output.generated_tokens)
            if self._push(token, final=final):
                self._finish(FinishReason.STOP, self._seen, ended=ended)
                return
        if ended:
            stopped = bool(output.generated_tokens) and output.generated_tokens[-1] in self._stop_ids
            self._finish(FinishReason.STOP if stopped else FinishReason.LENGTH, self._seen, ended=True)

    def _push(self, token: int, *, final: bool) -> bool:
        """Adds one drawn token; True when it completed a stop string."""
        piece, stopped = self._stops.push("" if token in self._stop_ids else self._text.push(token))
        if final and not stopped:
            piece += self._stops.flush()
        logprobs = self._row.logprobs[self._seen - 1 : self._seen]
        self._pending.append(Chunk(piece, 1, tuple(logprobs)))
        return stopped

    def _finish(self, reason: FinishReason, tokens: int, *, ended: bool) -> None:
        row = self._row
        self._pending.append(
            Finish(
                reason=reason,
                prompt_tokens=len(row.request.prompt_token_ids),
                completion_tokens=tokens,
                verified=row.verified and (row.judged or not self._seen),
                hits=tuple(row.hits.values()),
                prompt_scores=row.prompt_scores,
                neurons_shifted=row.neurons_shifted,
                error=row.error,
            )
        )
        self._end(finished=ended)
