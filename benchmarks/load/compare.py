"""Servers under the same load, in turns: one idles while another is asked."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any

from benchmarks.load.client import Answer, Client, body_of
from benchmarks.load.figures import figures, tokens_per_second
from benchmarks.load.loops import closed
from benchmarks.load.prompts import Prompt, mixed
from benchmarks.load.servers import Server
from benchmarks.overhead import SETTLE_SECONDS, interval

Ask = Callable[[int], Awaitable[Sequence[Answer]]]
"""Asks what a seed says, and gives the answers."""


@dataclass(frozen=True)
class Load:
    """What is asked of each side in each round."""

    source: str
    """A name of `prompts.SOURCES`."""
    shares: Mapping[str, float]
    requests: int
    max_tokens: int
    more: Mapping[str, object] = field(default_factory=dict)

    def prompts(self, seed: int) -> list[Prompt]:
        """One round's."""
        return list(islice(mixed(self.source, self.shares, self.max_tokens, seed), self.requests))

    def ask(self, server: Server, clients: int) -> Ask:
        """Asks a server in a closed loop, for streams."""

        async def ask(seed: int) -> Sequence[Answer]:
            prompts = self.prompts(seed)
            jobs = [(each.kind, body_of(each, server.model, stream=True, more=self.more)) for each in prompts]
            async with Client(server.url) as client:
                return await closed(client, jobs, clients)

        return ask


async def alternate(sides: Mapping[str, Ask], rounds: int) -> dict[str, list[Sequence[Answer]]]:
    """The answers of every round of each side. The first of each warms up and is dropped; then ABBA."""
    found: dict[str, list[Sequence[Answer]]] = {name: [] for name in sides}
    last = None
    for pair in range(rounds + 1):
        seed = random.randrange(1 << 40)
        for name in list(sides)[:: 1 if pair % 2 else -1]:
            if name != last:
                await asyncio.sleep(SETTLE_SECONDS)
            last = name
            found[name].append(await sides[name](seed))
    return {name: answers[1:] for name, answers in found.items()}


def compared(
    found: Mapping[str, Sequence[Sequence[Answer]]], speed: Callable[[Sequence[Answer]], float] = tokens_per_second
) -> dict[str, Any]:
    """Each side's figures in its round of median speed, and how fast each is by the first, by pairs of rounds."""
    first, *others = found
    sides: dict[str, dict[str, Any]] = {}
    for name, rounds in found.items():
        middle = median(map(speed, rounds))
        sides[name] = figures(min(rounds, key=lambda answers: abs(speed(answers) - middle)))
    for name in others:
        sides[name] |= interval([speed(b) / speed(a) for a, b in zip(found[first], found[name], strict=True)])
    return {"rounds": len(found[first]), "sides": sides}
