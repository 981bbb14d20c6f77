"""When requests are sent: as soon as a client is free (closed loop), or at times of their own (open loop)."""

import asyncio
import random
import time
from collections.abc import Iterable, Sequence

from benchmarks.load.client import Answer, Client

Job = tuple[str, bytes]
"""A kind and a body."""


async def closed(client: Client, jobs: Iterable[Job], clients: int) -> list[Answer]:
    """So many clients, each asking again once its answer has ended, until all jobs are done."""
    waiting, answers = iter(jobs), []

    async def one() -> None:
        for kind, body in waiting:
            answers.append(await client.ask(kind, body))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(one())
    return answers


async def opened(client: Client, jobs: Sequence[Job], rate: float, seed: int = 0) -> list[Answer]:
    """Requests that come `rate` a second on average, as in a Poisson process, whether others were answered or not."""
    rng, due, tasks = random.Random(seed), time.perf_counter(), []
    async with asyncio.TaskGroup() as group:
        for kind, body in jobs:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(group.create_task(client.ask(kind, body, due=due)))
    return [task.result() for task in tasks]
