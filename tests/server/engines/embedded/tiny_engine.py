"""The embedded engine on a tiny random-weight model, and plain calls into it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from guards.core.policy import Policy
from guards.core.verdict import GuardMode
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.events import Chunk, Finish, TokenLogprob
from server.engines.options import EmbeddedOptions
from server.engines.request import EngineRequest, Sampling
from server.policies import default_policy

T = TypeVar("T")
Served = tuple[Path, Path, Path]
"""Model folder, a detector and an intervention."""


@dataclass(frozen=True)
class Answer:
    text: str
    finish: Finish
    logprobs: tuple[TokenLogprob, ...]


def run(options: EmbeddedOptions, work: Callable[[EmbeddedEngine], Awaitable[T]]) -> T:
    """Starts an engine, does the work, stops it."""

    async def main() -> T:
        engine = EmbeddedEngine(options)
        await engine.start()
        try:
            return await work(engine)
        finally:
            await engine.stop()

    return asyncio.run(main())


async def ask(engine: EmbeddedEngine, prompt: tuple[int, ...], name: str = "r", **sampling: Any) -> Answer:
    policy, tenant = sampling.pop("policy", Policy()), sampling.pop("tenant", "")
    settings = {"max_tokens": 8, "temperature": 0.0, **sampling}
    text, finish = "", None
    logprobs: tuple[TokenLogprob, ...] = ()
    async for event in engine.submit(EngineRequest(name, prompt, Sampling(**settings), policy, tenant=tenant)):
        assert finish is None, "nothing follows a Finish"
        if isinstance(event, Chunk):
            text, logprobs = text + event.text, (*logprobs, *event.logprobs)
        else:
            finish = event
    assert finish is not None
    return Answer(text, finish, logprobs)


def guarded(served: Served, **options: Any) -> EmbeddedOptions:
    return EmbeddedOptions(model=str(served[0]), artifacts=(served[1],), **options)


def unguarded(served: Served) -> EmbeddedOptions:
    return EmbeddedOptions(model=str(served[0]))


def watching(engine: EmbeddedEngine) -> Policy:
    """Every guard's own rule, in shadow mode."""
    return default_policy(engine.info.guards).in_mode(GuardMode.SHADOW)
