"""Server-sent events. After the first byte the status cannot change, so this says what each ending emits.

- Nothing is sent until the engine's first event: what fails before it (a full queue, a prompt that does not fit, an
  engine error, a hit at the prompt under `abstain_style: error`) still gets its own status.
- A choice: its opening (chat: the role), pieces of text and of tool calls, a closing with `finish_reason`. Then, if
  asked for, one chunk with usage and no choices. Then `data: [DONE]`, which means that every choice is complete.
- With `echo` the prompt comes first, with its log-probabilities as far as they may be told (`prompts.py`), once the
  first token may be sent.
- Abstention: pieces not yet sent are dropped, tool calls and what their parser holds back alike; the operator's text is
  sent as content, after a blank line where text of the model went before it, or as a refusal (`abstention.py`); the
  closing carries `finish_reason`, which is never `tool_calls`, and `guard`. Other choices go on.
- Abstention under `error`, or any error, after the first byte: one object `{"error": …}` of the same shape as an error
  body, and the stream ends without `[DONE]`: OpenAI's SDKs raise on it, and anyone else sees an unfinished stream.
- The Responses API has events of its own for all of these, which `responses/wire.py` makes of the chunks.
- Disconnect: nothing more is sent, and every request of this stream is cancelled.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.context import context_of
from server.engines.base import Engine
from server.engines.events import Chunk, Event, Finish, PromptToken
from server.engines.request import EngineRequest
from server.errors import ClientGoneError
from server.generation import Observer, require_sound, run_all, while_connected
from server.openai.answers import AnswerJob
from server.openai.shapes import CompletionShape
from server.openai.wire import Wire

logger = logging.getLogger("skillguard.server")

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would otherwise collect the stream
}


class StreamedResponse(Response):
    """Runs a job and sends it as it comes. Cancels it when the reader leaves."""

    def __init__(
        self,
        engine: Engine,
        job: AnswerJob,
        wire: Wire,
        hold_back_tokens: int,
        observe: Callable[[EngineRequest], Observer],
        require_agreement: Callable[[], None],
    ) -> None:
        """`require_agreement` raises where nothing more may go out, though it was drawn before."""
        # Not Response.__init__: it would promise an empty body.
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._engine = engine
        self._job = job
        self._wire = wire
        self._observe = observe
        self._require_agreement = require_agreement
        self._choices = [_Choice(index, job, hold_back_tokens) for index in range(len(job.requests))]
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = context_of(scope)
        try:
            await while_connected(receive, self._run(send))
        except ClientGoneError:
            if not self._started:
                raise
            context.client_gone = True
        except Exception as error:
            if not self._started:
                raise
            context.error = error
            logger.error("%s the stream ended by an error", context.request_id, exc_info=error)
            await self._send(send, self._wire.failed(error, context.request_id), last=True)

    async def _run(self, send: Send) -> None:
        finishes: dict[int, Finish] = {}
        async with run_all(self._engine, self._job.requests, self._observe) as events:
            async for index, event in events:
                choice = self._choices[index]
                self._require_agreement()  # again: a slow reader gets later what was observed long before
                chunks = [self._job.chunk(part, index, choice.sent_tokens) for part in choice.advance(event)]
                await self._send(send, self._wire.chunks(chunks))
                if isinstance(event, Finish):
                    finishes[index] = event
        self._require_agreement()
        await self._send(send, self._wire.end([finishes[index] for index in sorted(finishes)]), last=True)

    async def _send(self, send: Send, body: bytes, last: bool = False) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if body or last:
            await send({"type": "http.response.body", "body": body, "more_body": not last})


class _Choice:
    """One streamed choice: holds back its newest tokens, and drops them where a guard fires."""

    def __init__(self, index: int, job: AnswerJob, hold_back_tokens: int) -> None:
        self._index = index
        self._job = job
        self._hold_back_tokens = hold_back_tokens
        self._held: deque[Chunk] = deque()
        self._held_tokens = 0
        self.sent_tokens = 0
        """Drawn tokens whose text was given out."""
        self._parser = job.parser()
        self._opened = False
        self._called = False
        self._echoed = False
        self._prompt_characters = self._sent_characters = 0

    def advance(self, event: Event) -> Iterator[dict[str, object]]:
        """What to send for this event, as choices of one chunk each. Raises where the stream must end."""
        for part in self._parts(event):
            yield {"index": self._index, "finish_reason": None, **part}

    def _parts(self, event: Event) -> Iterator[dict[str, object]]:
        shape = self._job.shape
        if not self._opened:
            self._opened = True
            if (opening := shape.opening(self._job.abstention.as_refusal)) is not None:
                yield opening
        if isinstance(event, Chunk):
            self._held.append(event)
            self._held_tokens += event.tokens
            yield from self._release(keep_tokens=self._hold_back_tokens)
            return
        require_sound(event)
        if (hit := event.abstained_on) is not None:
            abstention = self._job.abstention
            abstention.refuse_if_error_style(hit)
            yield from self._echo(())
            separator = "\n\n" if self._sent_characters > self._prompt_characters else ""
            yield shape.withheld(abstention.text, separator, abstention.as_refusal)
        else:
            yield from self._release(keep_tokens=0)
            yield from self._parse(Chunk("", tokens=0), final=True)
        self.sent_tokens = event.completion_tokens
        yield {**shape.closing(), **self._job.ending(event, self._called)}

    def _release(self, keep_tokens: int) -> Iterator[dict[str, object]]:
        while self._held and self._held_tokens - self._held[0].tokens >= keep_tokens:
            chunk = self._held.popleft()
            self._held_tokens -= chunk.tokens
            yield from self._echo(chunk.prompt)
            self.sent_tokens += chunk.tokens
            yield from self._parse(chunk, final=False)

    def _echo(self, prompt: Sequence[PromptToken]) -> Iterator[dict[str, object]]:
        """The prompt, once, before all else that is sent as text."""
        if not self._echoed and isinstance(self._job.shape, CompletionShape) and self._job.echoes:
            text, rows = self._job.echo(self._index, prompt)
            yield self._job.shape.text(text, rows)
            self._prompt_characters = self._sent_characters = len(text)
        self._echoed = True

    def _parse(self, chunk: Chunk, *, final: bool) -> Iterator[dict[str, object]]:
        """Only what may be sent reaches the parser: what it holds back never was ahead of the guards."""
        if self._job.only_prompts:
            return
        piece = self._parser.push(chunk.text, chunk.token_ids, final=final)
        logprobs = chunk.logprobs if self._job.wants_logprobs else None
        if piece.content or piece.calls or logprobs:
            yield self._job.shape.piece(piece, logprobs, offset=self._sent_characters)
            self._sent_characters += len(piece.content)
            self._called = self._called or bool(piece.calls)
