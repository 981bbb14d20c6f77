"""How streams end: abstentions early and late, tokens held back, errors before and after the first byte."""

import asyncio
from typing import Any

import pytest

from guards.core.verdict import Stage
from server.engines.events import Chunk, Finish, FinishReason
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, Step, abstention, answer, guard, hit
from tests.server.harness import CHAT, COMPLETIONS, Exchange, chat, completion, serving
from tests.server.streams import ROLE, ROLE_THAT_MAY_REFUSE, choices_of, delta

pytestmark = pytest.mark.anyio

TEXT = "No cooking here."
LATE_HIT = hit(guard(), Stage.GENERATION)
GUARD = {
    "action": "abstain",
    "skill": "cooking",
    "method": "ksd",
    "stage": "generation",
}


def engine(*steps: Step) -> ScriptedEngine:
    return ScriptedEngine([Script(steps)])


async def test_hit_at_the_prompt() -> None:
    async with serving(engine(*abstention(hit(guard()))), abstain_text=TEXT) as served:
        assert choices_of(await served.stream(CHAT, chat())) == [
            ROLE,
            delta(content=TEXT),
            {**delta("content_filter"), "guard": {**GUARD, "stage": "prompt"}},
            "[DONE]",
        ]
        assert choices_of(await served.stream(COMPLETIONS, completion())) == [
            {"index": 0, "text": TEXT, "logprobs": None, "finish_reason": None},
            {
                "index": 0,
                "text": "",
                "logprobs": None,
                "finish_reason": "content_filter",
                "guard": {**GUARD, "stage": "prompt"},
            },
            "[DONE]",
        ]


async def test_hit_during_generation_follows_what_was_sent() -> None:
    async with serving(engine(*abstention(LATE_HIT, "Take", " eggs")), abstain_text=TEXT) as served:
        assert choices_of(await served.stream(CHAT, chat())) == [
            ROLE,
            delta(content="Take"),
            delta(content=" eggs"),
            delta(content=f"\n\n{TEXT}"),
            {**delta("content_filter"), "guard": GUARD},
            "[DONE]",
        ]


@pytest.mark.parametrize(("hold_back", "sent"), [(0, "abcd"), (1, "abc"), (2, "ab"), (3, "a"), (4, ""), (9, "")])
async def test_held_back_tokens_are_dropped_at_a_hit(hold_back: int, sent: str) -> None:
    settings: dict[str, Any] = {"hold_back_tokens": hold_back, "abstain_text": TEXT, "abstain_style": "refusal"}
    async with serving(engine(*abstention(LATE_HIT, *"abcd")), **settings) as served:
        assert choices_of(await served.stream(CHAT, chat())) == [
            ROLE_THAT_MAY_REFUSE,
            *(delta(content=letter) for letter in sent),
            delta(refusal=TEXT),
            {**delta("stop"), "guard": GUARD},
            "[DONE]",
        ]


@pytest.mark.parametrize("hold_back", [1, 3, 9])
async def test_held_back_tokens_are_sent_in_the_end(hold_back: int) -> None:
    async with serving(engine(*answer(*"abcd")), hold_back_tokens=hold_back) as served:
        assert choices_of(await served.stream(CHAT, chat())) == [
            ROLE,
            *(delta(content=letter) for letter in "abcd"),
            delta("stop"),
            "[DONE]",
        ]


async def test_stream_lags_by_exactly_the_tokens_held_back() -> None:
    gates = [asyncio.Event() for _ in range(4)]
    steps = [step for gate, chunk in zip(gates, answer(*"abc"), strict=True) for step in (gate, chunk)]
    async with serving(engine(*steps), hold_back_tokens=2) as served:
        exchange = Exchange.of(served.app, COMPLETIONS, completion(stream=True))
        running = asyncio.create_task(exchange.run())
        for gate in gates[:3]:
            gate.set()
        assert [event["choices"][0]["text"] for event in await exchange.next_data()] == ["a"]
        assert exchange.sent.empty()
        gates[3].set()
        assert [event["choices"][0]["text"] for event in await exchange.next_data()] == ["b", "c", ""]
        await running


async def test_nothing_is_sent_before_the_first_event() -> None:
    gate = asyncio.Event()
    async with serving(engine(gate, *answer("a"))) as served:
        exchange = Exchange.of(served.app, CHAT, chat(stream=True))
        running = asyncio.create_task(exchange.run())
        while not served.engine.submitted:
            await asyncio.sleep(0)
        assert exchange.sent.empty()
        gate.set()
        assert (await exchange.sent.get())["type"] == "http.response.start"
        await running


async def test_abstention_as_an_error_after_the_first_byte() -> None:
    async with serving(engine(*abstention(LATE_HIT, "Take")), abstain_style="error") as served:
        events = choices_of(await served.stream(CHAT, chat()))
        assert events[:2] == [ROLE, delta(content="Take")]
        assert events[2:] == [
            {
                "error": {
                    "message": "This request needs the skill 'cooking', which this server withholds.",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "skill_abstained",
                    "guard": GUARD,
                }
            }
        ]


FAILED = Finish(FinishReason.ERROR, 0, 1, verified=True, error="CUDA")
UNVERIFIED = Finish(FinishReason.STOP, 0, 1, verified=False)


@pytest.mark.parametrize(("finish", "code"), [(FAILED, "engine_error"), (UNVERIFIED, "guard_error")])
async def test_error_after_the_first_byte_ends_the_stream(finish: Finish, code: str) -> None:
    async with serving(engine(Chunk("Take", 1), Chunk(" eggs", 1), finish), hold_back_tokens=1) as served:
        events = choices_of(await served.stream(CHAT, chat()))
        assert events[:2] == [ROLE, delta(content="Take")]
        assert len(events) == 3
        assert events[2]["error"]["code"] == code
        assert "CUDA" not in str(events)
        assert "eggs" not in str(events)


@pytest.mark.parametrize(("finish", "code"), [(FAILED, "engine_error"), (UNVERIFIED, "guard_error")])
async def test_error_before_the_first_byte_has_its_status(finish: Finish, code: str) -> None:
    async with serving(engine(finish)) as served:
        error = await served.error(CHAT, chat(stream=True))
        assert (error["status"], error["code"]) == (500, code)


async def test_one_failed_answer_cancels_the_others() -> None:
    never = asyncio.Event()
    scripts = [Script((Chunk("a", 1), FAILED), when=lambda prompt: prompt == "bad"), Script((never,))]
    async with serving(ScriptedEngine(scripts)) as served:
        events = await served.stream(COMPLETIONS, completion(["slow", "bad"]))
        assert events[-1]["error"]["code"] == "engine_error"
        assert served.engine.cancelled == [served.engine.submitted[0].request_id]
