"""A caller who hangs up frees the engine."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from server.engines.errors import EngineBusyError
from server.engines.events import Chunk, Finish, FinishReason
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, Step, guard, hit
from tests.server.harness import CHAT, CHECKS, COMPLETIONS, RESPONSES, Exchange, chat, completion, responses, serving

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


HIT = hit(guard("demo"))
FOUND = Finish(FinishReason.ABSTAIN, 0, 1, verified=True, hits=(HIT,))


def withholds(*steps: Step) -> ScriptedEngine:
    """Waits for what does not come; of an answer that is given up meanwhile a hit is known."""
    return ScriptedEngine([Script((*steps, asyncio.Event()), given_up=FOUND)])


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_found_is_recorded_though_the_caller_left(stream: bool, text: bool, tmp_path: Path) -> None:
    engine = withholds(Chunk("a", 1))
    async with serving(engine, audit_dir=tmp_path, audit_text=text) as served:
        exchange = Exchange.of(served.app, CHAT, chat("cook", stream=stream))
        running = asyncio.create_task(exchange.run())
        while not engine.submitted:
            await asyncio.sleep(0)
        if stream:
            await exchange.next_data()
        exchange.hang_up.set()
        await running
        abstained = 'skillguard_abstentions_total{method="ksd",skill="cooking",stage="prompt"}'
        assert await served.metric(abstained) == 1
        verdict = 'skillguard_verdicts_total{guard="demo",mode="enforce",stage="prompt",verdict="abstain"}'
        assert await served.metric(verdict) == 1
    (told,) = [each for each in records(tmp_path) if each["kind"] == "abstention"]
    assert told["answer"] == engine.submitted[0].request_id
    assert ("text" in told) is text


async def test_an_answer_that_another_one_ended_is_recorded_too(tmp_path: Path) -> None:
    scripts = [
        Script((Finish(FinishReason.ERROR, 0, 0, verified=True, error="odd"),), when=lambda prompt: prompt == "break"),
        Script((asyncio.Event(),), given_up=FOUND),
    ]
    async with serving(ScriptedEngine(scripts), audit_dir=tmp_path) as served:
        assert (await served.post(COMPLETIONS, completion(["cook", "break"]))).status_code == 500
    assert [each["kind"] for each in records(tmp_path)].count("abstention") == 1


async def test_an_answer_given_up_without_a_hit_is_counted_as_such() -> None:
    async with serving(never_ends(Chunk("a", 1))) as served:
        exchange = Exchange.of(served.app, CHAT, chat(stream=True))
        running = asyncio.create_task(exchange.run())
        await exchange.next_data()
        exchange.hang_up.set()
        await running
        assert await served.metric('skillguard_tenant_answers_total{outcome="given_up",tenant="anonymous"}') == 1
        assert await served.metric("skillguard_verified_requests_total") == 0
        assert await served.metric("skillguard_completion_tokens_total") == 1


def records(folder: Path) -> list[dict[str, Any]]:
    lines = b"".join(path.read_bytes() for path in sorted(folder.glob("audit-*.jsonl"))).splitlines()
    return [json.loads(line) for line in lines]
