"""Runs the engine requests behind one HTTP request: all are queued or none, and all end when it ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.types import Receive

from server.engines.base import Engine
from server.engines.events import Chunk, Event, EventStream, Finish, FinishReason, PromptToken, TokenLogprob
from server.engines.request import EngineRequest
from server.errors import ClientGoneError, GenerationError, UnverifiedError

T = TypeVar("T")

Observer = Callable[[Event], Awaitable[None]]
"""Sees every event of one answer before whoever reads the answer does, for metrics and the audit log.

What it raises ends the answer, in the place of the event.
"""


class _Queue(asyncio.Queue[tuple[int, Event | Exception]]):
    """What the pumps of one HTTP request hand over. Unbounded: an answer is, by its `max_tokens`."""


@dataclass(frozen=True)
class Answer:
    """One whole answer. An abstained one has neither text nor logprobs."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish: Finish
    prompt: tuple[PromptToken, ...] = ()
    """As `Chunk.prompt`."""


def require_sound(finish: Finish) -> None:
    """Raises where an answer must not go out: the engine failed, or some position has no reading of some guard.

    An abstention needs no further reading: it sends nothing of the model's.
    """
    if finish.reason is FinishReason.ERROR:
        kind = GenerationError if finish.verified else UnverifiedError
        raise kind(f"the engine ended the answer: {finish.error}", finish.faults)
    if finish.reason is not FinishReason.ABSTAIN and not finish.verified:
        raise UnverifiedError(
            "the engine finished an answer without a reading of every guard at every position", finish.faults
        )


@asynccontextmanager
async def run_all(
    engine: Engine, requests: Sequence[EngineRequest], observe: Callable[[EngineRequest], Observer]
) -> AsyncIterator[AsyncIterator[tuple[int, Event]]]:
    """The events of all requests in order of arrival, each with the index of its request.

    Raises what `submit` raises, before any answer has begun. Leaving the context cancels what still runs, and its
    observer sees what was known of it: nobody gets that, but a hit that was found is counted and recorded.
    """
    queue = _Queue()
    streams: list[EventStream] = []
    pumps: list[_Pump] = []
    try:
        for request in requests:
            streams.append(engine.submit(request))
        for index, (request, stream) in enumerate(zip(requests, streams, strict=True)):
            pumps.append(_Pump(index, stream, queue, observe(request)))
        yield _Merged(queue, unfinished=len(streams))
    finally:
        ending = asyncio.ensure_future(_end(streams, pumps))
        _ENDING.add(ending)
        ending.add_done_callback(_ENDING.discard)
        await asyncio.shield(ending)  # whoever is cancelled once more does not wait, but all ends as it should


_ENDING: set["asyncio.Future[None]"] = set()
"""Held here, since the event loop itself does not."""


async def _end(streams: Sequence[EventStream], pumps: Sequence["_Pump"]) -> None:
    """Streams without a pump were queued before one that was refused, and nobody observes them."""
    known = [await stream.aclose() for stream in streams]
    waits = [pump.end(finish) for pump, finish in zip(pumps, known, strict=False)]
    await asyncio.gather(*waits, return_exceptions=True)


class _Pump:
    """Hands one answer's events over, each once its observer has seen it."""

    def __init__(self, index: int, stream: EventStream, queue: _Queue, observer: Observer) -> None:
        self._index, self._stream, self._queue, self._observer = index, stream, queue, observer
        self._finishing = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            async for event in self._stream:
                self._finishing = isinstance(event, Finish)
                await self._observer(event)
                self._queue.put_nowait((self._index, event))
                if self._finishing:
                    return
            raise GenerationError("the engine's events ended without a Finish")
        except Exception as error:  # handed to whoever reads the queue, who raises it
            self._queue.put_nowait((self._index, error))

    async def end(self, known: Finish | None) -> None:
        """Stops, unless the Finish is being observed, which goes on; else its observer sees what is `known`."""
        if self._finishing:
            await self._task
            return
        self._task.cancel()
        await asyncio.wait({self._task})
        if known is not None:
            await self._observer(known)


class _Merged(AsyncIterator[tuple[int, Event]]):
    """Ends once every request has finished; raises what a pump could not deliver."""

    def __init__(self, queue: _Queue, unfinished: int) -> None:
        self._queue = queue
        self._unfinished = unfinished

    async def __anext__(self) -> tuple[int, Event]:
        if not self._unfinished:
            raise StopAsyncIteration
        index, event = await self._queue.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Finish):
            self._unfinished -= 1
        return index, event


async def collect(
    engine: Engine, requests: Sequence[EngineRequest], observe: Callable[[EngineRequest], Observer]
) -> list[Answer]:
    """Whole answers in the order of their requests. Raises as soon as one of them must not go out."""
    chunks: list[list[Chunk]] = [[] for _ in requests]
    finishes: dict[int, Finish] = {}
    async with run_all(engine, requests, observe) as events:
        async for index, event in events:
            if isinstance(event, Chunk):
                chunks[index].append(event)
            else:
                require_sound(event)
                finishes[index] = event
    return [_answer(pieces, finishes[index]) for index, pieces in enumerate(chunks)]


def _answer(chunks: list[Chunk], finish: Finish) -> Answer:
    if finish.reason is FinishReason.ABSTAIN:
        return Answer("", (), finish)
    return Answer(
        text="".join(chunk.text for chunk in chunks),
        logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        finish=finish,
        prompt=chunks[0].prompt if chunks else (),
    )


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, unless the caller hangs up first: then it is cancelled and ClientGoneError raised.

    The request's body must have been read. Waiting for the disconnect, rather than for a failing send, notices
    callers who leave while their request is queued.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError("The client disconnected.")
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)
        del task, watcher  # an error's traceback holds this frame, and a task its error


async def disconnected(receive: Receive) -> None:
    """Waits for the caller to hang up. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
