"""Two servers under the same load, in turns: one idles while the other is asked."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any

from benchmarks.load.client import Answer, Client, body_of
from benchmarks.load.figures import figures, tokens_per_second
from benchmarks.load.loops import Job, closed
from benchmarks.load.prompts import mixed
from benchmarks.load.servers import Server
from benchmarks.overhead import SETTLE_SECONDS, interval


@dataclass(frozen=True)
class Load:
    """What is asked of each side in each round."""

    source: str
    """A name of `prompts.SOURCES`."""
    shares: Mapping[str, float]
    requests: int
    max_tokens: int
    stream: bool = True
    more: Mapping[str, object] = field(default_factory=dict)

    def jobs(self, server: Server, seed: int) -> list[Job]:
        """One round's requests, for one server."""
        prompts = islice(mixed(self.source, self.shares, self.max_tokens, seed), self.requests)
        return [(prompt.kind, body_of(prompt, server.model, stream=self.stream, more=self.more)) for prompt in prompts]


async def alternate(
    sides: Mapping[str, Server], load: Load, clients: int, rounds: int
) -> dict[str, list[list[Answer]]]:
    """The answers of every round of each side. The first pair warms up and is dropped; then ABBA."""
    found: dict[str, list[list[Answer]]] = {name: [] for name in sides}
    last = None
    for pair in range(rounds + 1):
        seed = random.randrange(1 << 40)
        for name in list(sides) if pair % 2 else list(reversed(sides)):
            if name != last:
                await asyncio.sleep(SETTLE_SECONDS)
            last = name
            jobs = load.jobs(sides[name], seed)
            async with Client(sides[name].url) as client:
                found[name].append(await closed(client, jobs, clients))
    return {name: answers[1:] for name, answers in found.items()}


def compared(found: Mapping[str, Sequence[Sequence[Answer]]]) -> dict[str, Any]:
    """Each side's figures in its round of median speed, and of two sides the second's speed over the first's."""
    sides = {name: figures(min(rounds, key=_distance(rounds))) for name, rounds in found.items()}
    if len(found) == 1:
        return {"sides": sides}
    theirs, ours = ([tokens_per_second(answers) for answers in rounds] for rounds in found.values())
    ratios = [second / first for first, second in zip(theirs, ours, strict=True)]
    return {**interval(ratios), "rounds": len(ratios), "sides": sides}


def _distance(rounds: Sequence[Sequence[Answer]]) -> Callable[[Sequence[Answer]], float]:
    middle = median(tokens_per_second(answers) for answers in rounds)
    return lambda answers: abs(tokens_per_second(answers) - middle)
