"""A running engine and plain calls into it, for tests that compare what engines answer."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from guards.core.policy import Policy
from guards.core.verdict import GuardMode
from server.engines.base import Engine
from server.engines.events import Chunk, Finish, GuardScore
from server.engines.options import EmbeddedOptions, VllmOptions
from server.engines.request import EngineRequest, Message, Sampling

T = TypeVar("T")

DEMO = Path(__file__).parents[4] / "artifacts" / "demo"
MODEL, GUARDS = DEMO / "model", DEMO / "guards"
SUMS = ("What is 23 plus 58?", "How much is 40 minus 17?", "What is 6 times 7?")
OTHERS = (
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "What is the capital of Japan?",
)
WAIT_SECONDS = 240
"""Nothing here takes as long; what would wait for ever fails instead."""
SMALL = ("--dtype", "float32", "--max-model-len", "512", "--kv-cache-memory-bytes", str(1 << 27))


def guard(name: str) -> Path:
    """A guard of the demo by its name, or any other by its path."""
    return GUARDS / name


@dataclass(frozen=True)
class Answer:
    """One answer as its events told it."""

    text: str
    chunks: tuple[Chunk, ...]
    finish: Finish


class Live:
    """An engine on an event loop of its own."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self._loop = loop
        self._count = 0

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that runs on the engine's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=WAIT_SECONDS)

    def chat(self, question: str) -> tuple[int, ...]:
        """Token ids of a question in the chat frame."""
        return self.engine.encode_chat([Message("user", question)])

    def policy(self, modes: Mapping[str, GuardMode]) -> Policy:
        """Each guard's own rule, in these modes."""
        rules = {guard.name: guard.rule for guard in self.engine.info.guards}
        return Policy({name: replace(rule, mode=modes.get(name, rule.mode)) for name, rule in rules.items()})

    def draw(
        self,
        prompts: Sequence[str | tuple[int, ...]],
        sampling: Sampling,
        modes: Sequence[Mapping[str, GuardMode]] = (),
    ) -> list[Answer]:
        """Answers to all prompts, asked at once; `modes` has one entry per prompt, or none."""

        async def one(request: EngineRequest) -> Answer:
            chunks: list[Chunk] = []
            async for event in self.engine.submit(request):
                if isinstance(event, Finish):
                    return Answer("".join(chunk.text for chunk in chunks), tuple(chunks), event)
                chunks.append(event)
            raise AssertionError("events without a Finish")

        async def everyone() -> list[Answer]:
            return await asyncio.gather(*map(one, requests))

        requests = []
        for index, prompt in enumerate(prompts):
            self._count += 1
            ids = self.chat(prompt) if isinstance(prompt, str) else prompt
            requests.append(EngineRequest(f"t{self._count}", ids, sampling, self.policy(modes[index] if modes else {})))
        return self.wait(everyone())

    def scores(self, prompts: Sequence[tuple[int, ...]]) -> list[dict[str, GuardScore]]:
        """Every guard's reading at the last token of each prompt, all asked at once."""

        async def everyone() -> list[tuple[GuardScore, ...]]:
            checks = []
            for prompt in prompts:
                self._count += 1
                checks.append(self.engine.check(prompt, f"t{self._count}"))
            return await asyncio.gather(*checks)

        return [{score.guard: score for score in found} for found in self.wait(everyone())]


@contextmanager
def live(make: Callable[[], Engine], *, verified: bool = True) -> Iterator[Live]:
    """Starts an engine and stops it. Its guards must verify, unless what they read is all that matters."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(timeout=WAIT_SECONDS)

    engine = make()
    try:
        wait(engine.start())
        try:
            assert not verified or set(wait(engine.verify()).values()) <= {None}
            yield Live(engine, loop)
        finally:
            wait(engine.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def on_vllm(*guards: str, flags: Sequence[str] = (), options: VllmOptions | None = None) -> Callable[[], Engine]:
    """The demo on vLLM."""
    given = options or VllmOptions(model=str(MODEL))
    given = replace_options(given, artifacts=tuple(map(guard, guards)), flags=(*SMALL, *flags))

    def make() -> Engine:
        from server.engines.vllm.engine import VllmEngine

        return VllmEngine(given)

    return make


def replace_options(options: VllmOptions, **changes: Any) -> VllmOptions:
    """Frozen options with some fields changed."""
    return VllmOptions(**{**options.model_dump(), **changes})


def embedded(*guards: str) -> Callable[[], Engine]:
    """The demo on the embedded engine."""

    def make() -> Engine:
        from server.engines.embedded.engine import EmbeddedEngine

        return EmbeddedEngine(EmbeddedOptions(model=str(MODEL), artifacts=tuple(map(guard, guards))))

    return make


GREEDY = Sampling(max_tokens=24, temperature=0)


def greedy(**changes: Any) -> Sampling:
    """Greedy sampling with some fields changed."""
    return replace(GREEDY, **changes)
