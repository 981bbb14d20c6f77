"""The shipped fake keeps the contract that the server relies on."""

import asyncio

import pytest

from guards.core.verdict import GuardMode, Stage
from server.engines.base import Engine
from server.engines.errors import (
    EngineBusyError,
    EngineStoppedError,
    PromptError,
    PromptTooLongError,
    UnsupportedOptionError,
)
from server.engines.events import Chunk, Event, Finish
from server.engines.request import COMMON_OPTIONS, EngineRequest, Message, Sampling
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit

pytestmark = pytest.mark.anyio


def request(text: str, max_tokens: int = 4) -> EngineRequest:
    return EngineRequest("r1", tuple(text.encode()), Sampling(max_tokens=max_tokens))


async def play(engine: ScriptedEngine, text: str) -> list[Event]:
    return [event async for event in engine.submit(request(text))]


async def test_it_is_an_engine() -> None:
    engine: Engine = ScriptedEngine()
    await engine.start()
    assert await engine.verify() == {"demo": None}
    assert engine.healthy()
    await engine.stop()
    assert not engine.healthy()


async def test_first_script_that_takes_the_prompt_plays() -> None:
    engine = ScriptedEngine([Script(answer("no"), when=lambda prompt: "x" in prompt), Script(answer("a", "b"))])
    assert await play(engine, "é") == [
        Chunk("a", 1),
        Chunk("b", 1),
        Finish(answer()[-1].reason, prompt_tokens=2, completion_tokens=2, verified=True),  # type: ignore[union-attr]
    ]
    assert (await play(engine, "x"))[0] == Chunk("no", 1)
    assert engine.cancelled == []


async def test_abstention_names_its_hit() -> None:
    fired = hit(guard(), Stage.GENERATION)
    *_, finish = abstention(fired, "a")
    assert isinstance(finish, Finish)
    assert finish.abstained_on == fired
    assert finish.completion_tokens == 2
    assert hit(guard(), mode=GuardMode.SHADOW).mode is GuardMode.SHADOW


async def test_closing_cancels_once_even_before_the_first_event() -> None:
    engine = ScriptedEngine([Script((asyncio.Event(),))])
    events = engine.submit(request("a"))
    for _ in range(2):
        await events.aclose()
    assert engine.cancelled == ["r1"]


async def test_step_that_waits() -> None:
    gate = asyncio.Event()
    engine = ScriptedEngine([Script((gate, *answer("a")))])
    playing = asyncio.create_task(play(engine, "a"))
    await asyncio.sleep(0)
    assert not playing.done()
    gate.set()
    assert len(await playing) == 2


async def test_refusals() -> None:
    engine = ScriptedEngine([Script(answer("a"), when=lambda prompt: "a" in prompt)], max_model_tokens=8)
    with pytest.raises(PromptError, match="no script"):
        engine.submit(request("b"))
    with pytest.raises(PromptTooLongError, match="need 9 tokens, the model has 8"):
        engine.submit(request("aaaaa"))
    with pytest.raises(PromptError, match="empty"):
        engine.encode_text("")
    with pytest.raises(PromptError, match="token 256"):
        await engine.check((256,), "r1")
    engine.refusal = EngineBusyError("full")
    with pytest.raises(EngineBusyError):
        engine.submit(request("a"))
    engine.refusal = None
    await engine.stop()
    with pytest.raises(EngineStoppedError):
        engine.submit(request("a"))
    assert engine.submitted == []


async def test_option_is_refused_where_it_was_not_given() -> None:
    biased = EngineRequest("r1", (97,), Sampling(max_tokens=4, logit_bias={5: 1.0}))
    limited = ScriptedEngine(options=COMMON_OPTIONS)
    with pytest.raises(UnsupportedOptionError, match="does not honour 'logit_bias'") as caught:
        limited.submit(biased)
    assert (caught.value.param, limited.submitted) == ("logit_bias", [])
    free = ScriptedEngine()
    free.submit(biased)
    assert free.submitted == [biased]


async def test_chat_prompt_is_readable() -> None:
    tokens = ScriptedEngine().encode_chat([Message("user", "hi")])
    assert bytes(tokens) == b"user: hi\nassistant: "
