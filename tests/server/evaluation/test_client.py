"""What is read from answers, and what is done about a server that is full."""

import asyncio

import pytest

from server.engines.errors import EngineBusyError
from server.engines.events import Chunk, Finish, FinishReason, TokenLogprob
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from server.errors import EvaluationError
from server.evaluation.client import PATIENCE_SECONDS, Client, Prompt
from tests.server.harness import MODEL, serving

pytestmark = pytest.mark.anyio
GREEDY = {"max_tokens": 8, "temperature": 0}
ENDPOINTS = [Prompt("hi", chat=True), Prompt("hi", chat=False)]


@pytest.mark.parametrize("prompt", ENDPOINTS)
async def test_an_answer(prompt: Prompt) -> None:
    async with serving() as served:
        reply = await Client(served.client, MODEL).ask(prompt, GREEDY)
    assert (reply.text, reply.finish_reason, reply.abstained) == ("Hello there.", "stop", False)


@pytest.mark.parametrize("prompt", ENDPOINTS)
@pytest.mark.parametrize("style", ["content_filter", "refusal", "error"])
async def test_an_abstention_is_known_in_every_style(prompt: Prompt, style: str) -> None:
    played = ScriptedEngine([Script(abstention(hit(guard()), "He"))])
    async with serving(played, abstain_style=style) as served:
        reply = await Client(served.client, MODEL).ask(prompt, GREEDY)
    assert (reply.abstained, reply.text) == (True, "")
    assert reply.guard is not None
    assert reply.guard["skill"] == "cooking"


@pytest.mark.parametrize("prompt", ENDPOINTS)
async def test_the_likeliest_letter(prompt: Prompt) -> None:
    top = ((" The", b" The", -0.1), ("B", b"B", -2.0), (" C", b" C", -1.0), ("AB", b"AB", -0.5))
    drawn = TokenLogprob(" The", b" The", -0.1, top)
    played = (Chunk(" The", 1, (drawn,)), Finish(FinishReason.LENGTH, 0, completion_tokens=1, verified=True))
    async with serving(ScriptedEngine([Script(played)])) as served:
        client = Client(served.client, MODEL)
        assert (await client.ask(prompt, GREEDY, "ABCD")).likeliest == "C"
        assert (await client.ask(prompt, GREEDY, "D")).likeliest is None


@pytest.mark.parametrize("prompt", ENDPOINTS)
async def test_scores_over_tau(prompt: Prompt) -> None:
    async with serving(anonymous_role="operator") as served:
        assert await Client(served.client, MODEL).ratios(prompt) == {"demo": 2.0}


async def test_a_full_server_is_asked_again_when_it_says() -> None:
    played = ScriptedEngine([Script(answer("hi"))])
    played.refusal = EngineBusyError("full", retry_after_seconds=7)
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        played.refusal = None if len(slept) == 2 else played.refusal
        await asyncio.sleep(0)

    async with serving(played) as served:
        reply = await Client(served.client, MODEL, sleep).ask(ENDPOINTS[0], GREEDY)
    assert (reply.text, slept) == ("hi", [7, 7])


async def test_patience_ends() -> None:
    played = ScriptedEngine()
    played.refusal = EngineBusyError("full", retry_after_seconds=100)
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async with serving(played) as served:
        with pytest.raises(EvaluationError, match="429"):
            await Client(served.client, MODEL, sleep).ask(ENDPOINTS[0], GREEDY)
    assert sum(slept) <= PATIENCE_SECONDS


async def test_errors_are_no_answers() -> None:
    async with serving() as served:
        client = Client(served.client, "another")
        with pytest.raises(EvaluationError, match=r"HTTP 404: .*not served here"):
            await client.ask(ENDPOINTS[0], GREEDY)
        with pytest.raises(EvaluationError, match="HTTP 404"):
            await client.ratios(ENDPOINTS[0])
