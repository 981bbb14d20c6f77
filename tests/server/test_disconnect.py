"""A caller who hangs up frees the engine."""

import asyncio

import pytest

from server.engines.base import Chunk
from server.engines.errors import EngineBusyError
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script
from tests.server.harness import CHAT, CHECKS, COMPLETIONS, RESPONSES, Exchange, completion, responses, serving

pytestmark = pytest.mark.anyio


def never_ends(*begins: Chunk) -> ScriptedEngine:
    """Gives these chunks and then waits for what does not come."""
    return ScriptedEngine([Script((*begins, asyncio.Event()))])


@pytest.mark.parametrize("begins", [(), (Chunk("a", 1),)])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_answer_is_cancelled(stream: bool, begins: tuple[Chunk, ...]) -> None:
    async with serving(never_ends(*begins)) as served:
        body = completion(["a", "b"], n=2, stream=stream)
        exchange = Exchange.of(served.app, COMPLETIONS, body)
        running = asyncio.create_task(exchange.run())
        while len(served.engine.submitted) < 4:
            await asyncio.sleep(0)
        if stream and begins:
            await exchange.next_data()
        assert served.engine.cancelled == []
        exchange.hang_up.set()
        await running
        assert served.engine.cancelled == [request.request_id for request in served.engine.submitted]
        sample = f'skillguard_requests_total{{method="POST",route="{COMPLETIONS}",status="499"}}'
        assert await served.metric(sample) == 1


@pytest.mark.parametrize(
    ("path", "body"), [(COMPLETIONS, completion(stream=True)), (RESPONSES, responses(stream=True))]
)
async def test_nothing_is_sent_after_the_caller_left(path: str, body: dict[str, object]) -> None:
    async with serving(never_ends(Chunk("a", 1))) as served:
        exchange = Exchange.of(served.app, path, body)
        running = asyncio.create_task(exchange.run())
        await exchange.next_data()
        exchange.hang_up.set()
        await running
        assert exchange.sent.empty()
        assert served.engine.cancelled == [served.engine.submitted[0].request_id]


async def test_check_is_cancelled() -> None:
    async with serving() as served:
        served.engine.may_check.clear()
        exchange = Exchange.of(served.app, CHECKS, completion())
        running = asyncio.create_task(exchange.run())
        while not served.engine.checked:
            await asyncio.sleep(0)
        exchange.hang_up.set()
        await running
        assert served.engine.cancelled == served.engine.checked


async def test_caller_who_leaves_while_sending() -> None:
    async with serving() as served:
        exchange = Exchange(served.app, CHAT, parts=[b'{"model":'], complete=False)
        exchange.hang_up.set()
        await exchange.run()
        assert served.engine.submitted == []
        assert (await exchange.sent.get())["status"] == 499


async def test_refusal_of_one_answer_closes_those_queued_before() -> None:
    """A queue that fills up halfway through a request: nothing of it may stay queued."""

    class FillsUp(ScriptedEngine):
        def _admit(self, prompt_token_ids: tuple[int, ...], answer_tokens: int) -> str:
            if len(self.submitted) == 2:
                raise EngineBusyError("full")
            return super()._admit(prompt_token_ids, answer_tokens)

    async with serving(FillsUp([Script((asyncio.Event(),))])) as served:
        error = await served.error(COMPLETIONS, completion(n=3))
        assert error["code"] == "engine_busy"
        assert served.engine.cancelled == [request.request_id for request in served.engine.submitted]
