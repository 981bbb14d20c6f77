"""What one request makes the server do: counted and bounded before anything is encoded, and dropped with its caller."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guards.model.rendering import RENDER_SECONDS
from server.encoding import AT_A_TIME, LIKELY_CHARACTERS, MOST_WAITING, Encoder
from server.engines.errors import EngineBusyError, PromptTooLongError
from server.engines.guarded import MAX_BAD_WORDS
from server.engines.request import Message
from server.engines.scripted.engine import ScriptedEngine
from server.workers import SharedWorkers, Workers
from tests.server.harness import (
    ATTRIBUTIONS,
    CHAT,
    CHECKS,
    COMPLETIONS,
    GUARDRAIL,
    MODERATIONS,
    RESPONSES,
    Exchange,
    chat,
    completion,
    responses,
    serving,
)

pytestmark = pytest.mark.anyio
CONTEXT = 64
LONG = "a" * (CONTEXT + 1)
MANY = [{"role": "user", "content": ""}] * (CONTEXT + 1)
TURN = {"role": "user", "content": LONG}


class Counting(ScriptedEngine):
    """Keeps what it was asked to encode; a token has up to `longest` characters, of which most have one."""

    def __init__(self, longest: int = 1) -> None:
        super().__init__(max_model_tokens=CONTEXT)
        self._info = replace(self._info, longest_token=longest)
        self.encoded: list[str] = []
        self.may_encode = threading.Event()
        self.may_encode.set()
        self.begun = threading.Semaphore(0)

    def encode_text(self, text: str, *, opened: bool = True) -> tuple[int, ...]:
        self.encoded.append(text)
        self.begun.release()
        assert self.may_encode.wait(30)
        return super().encode_text(text, opened=opened)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (COMPLETIONS, completion(["a"] * 9), 400),
        (COMPLETIONS, completion(["a", "b"], n=5), 400),
        (CHAT, chat("a", n=9), 400),
        (COMPLETIONS, completion(LONG), 400),
        (COMPLETIONS, completion(["a", LONG]), 400),
        (CHAT, chat(LONG), 400),
        (CHAT, chat("a", tools=[{"type": "function", "function": {"name": "f", "description": LONG}}]), 400),
        (CHAT, chat("a", chat_template_kwargs={"said": [LONG]}), 400),
        (CHAT, {**chat(), "messages": MANY}, 400),
        (RESPONSES, responses(LONG), 400),
        (CHECKS, completion(LONG), 400),
        (CHECKS, {"messages": [TURN]}, 400),
        (CHECKS, {"messages": MANY}, 400),
        (ATTRIBUTIONS, completion(LONG), 400),
        (MODERATIONS, {"input": LONG}, 400),
        (GUARDRAIL, {"texts": [LONG], "input_type": "request"}, 400),
        ("/tokenize", {"prompt": LONG}, 400),
        ("/tokenize", {"messages": MANY}, 400),
        ("/detokenize", {"tokens": [97] * (CONTEXT + 1)}, 400),
    ],
)
async def test_what_cannot_fit_is_refused_before_it_is_encoded(path: str, body: dict[str, Any], status: int) -> None:
    engine = Counting()
    async with serving(engine, anonymous_role="operator") as served:
        response = await served.post(path, body)
        assert response.status_code == status, response.text
        assert LONG not in engine.encoded
        assert len(engine.encoded) <= 1, "the text beside it at most"


@pytest.mark.parametrize("asked", ["text", "chat"])
async def test_of_a_text_that_may_fit_the_beginning_is_encoded_first(asked: str) -> None:
    engine = Counting(longest=1000)
    encoder, text = Encoder(engine), "a" * (CONTEXT * 900)
    with pytest.raises(PromptTooLongError, match="of which 512 are 512 tokens; wanted at most 64"):
        await (encoder.text("", text) if asked == "text" else encoder.chat("", [Message("user", text)]))
    assert [len(each) for each in engine.encoded] == [LIKELY_CHARACTERS * CONTEXT]
    await encoder.text("", "a" * CONTEXT)
    assert engine.encoded[1:] == ["a" * CONTEXT], "positive control: a usual text is encoded once"


async def _begun(engine: Counting, count: int) -> None:
    for _ in range(count):
        assert await asyncio.to_thread(engine.begun.acquire, timeout=30)


@pytest.mark.parametrize(
    ("path", "make"),
    [
        (COMPLETIONS, completion),
        (CHAT, chat),
        (RESPONSES, responses),
        (CHECKS, completion),
        (MODERATIONS, lambda text: {"input": text}),
        ("/tokenize", lambda text: {"prompt": text}),
    ],
)
async def test_what_waits_for_a_caller_who_hung_up_is_not_encoded(
    path: str, make: Callable[[str], dict[str, object]]
) -> None:
    engine = Counting()
    async with serving(engine) as served:
        engine.may_encode.clear()
        others = [asyncio.create_task(served.post("/tokenize", {"prompt": "other"})) for _ in range(AT_A_TIME)]
        await _begun(engine, AT_A_TIME)
        exchange = Exchange.of(served.app, path, make("gone"))
        running = asyncio.create_task(exchange.run())
        while not served.app.state.services.encoder.waiting:
            await asyncio.sleep(0)
        assert (await served.client.get("/health")).status_code == 200, "the event loop goes on"
        exchange.hang_up.set()
        await running
        engine.may_encode.set()
        assert {(await other).status_code for other in others} == {200}
        assert not any("gone" in each for each in engine.encoded)
        await served.post(path, make("here"))
        assert any("here" in each for each in engine.encoded), "positive control"


async def test_a_full_queue_is_said() -> None:
    workers = Workers("texts", at_a_time=1, most_waiting=1)
    go, seen = threading.Event(), []

    def work(name: str) -> str:
        assert go.wait(30)
        seen.append(name)
        return name

    first = asyncio.create_task(workers.run(work, "first"))
    second = asyncio.create_task(workers.run(work, "second"))
    while workers.waiting < 1:
        await asyncio.sleep(0)
    with pytest.raises(EngineBusyError, match="too many requests wait for texts: try again"):
        await workers.run(work, "third")
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    third = asyncio.create_task(workers.run(work, "third"))
    go.set()
    assert list(await asyncio.gather(first, third)) == ["first", "third"], "who left made room"
    assert seen == ["first", "third"]
    workers.close()


async def test_one_tenant_leaves_a_thread_to_the_others() -> None:
    workers = SharedWorkers("texts", each_at_a_time=2, each_waiting=1)
    go, begun = threading.Event(), threading.Semaphore(0)

    def slow(name: str) -> str:
        begun.release()
        assert go.wait(30)
        return name

    asked = [asyncio.create_task(workers.run("a", slow, name)) for name in ("first", "second", "third")]
    for _ in range(2):
        assert await asyncio.to_thread(begun.acquire, timeout=30)
    with pytest.raises(EngineBusyError, match="too many requests wait for texts: try again"):
        await workers.run("a", len, (1,))
    assert await workers.run("b", len, (1,)) == 1
    for task in asked[:2]:
        task.cancel()
    await asyncio.gather(*asked[:2], return_exceptions=True)
    assert await workers.run("b", len, (1,)) == 1
    assert not begun.acquire(blocking=False), "who hangs up does not get the thread that still works for them"
    go.set()
    assert await asked[2] == "third"
    assert await workers.run("a", len, (1,)) == 1
    workers.close()


async def test_a_tenant_whose_prompts_wait_leaves_the_encoder_to_others() -> None:
    engine = Counting()
    encoder = Encoder(engine)
    for each in "ab":
        assert await encoder.text(each, each) == engine.encode_text(each), "positive control"
    engine.may_encode.clear()
    mine = [asyncio.create_task(encoder.text("a", "mine")) for _ in range(AT_A_TIME + MOST_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError):
        await encoder.text("a", "one more")
    other = asyncio.create_task(encoder.text("b", "other"))
    while "other" not in engine.encoded:
        await asyncio.sleep(0)
    assert engine.encoded.count("mine") <= AT_A_TIME
    engine.may_encode.set()
    await asyncio.gather(other, *mine)
    encoder.close()


async def test_a_tenant_that_asks_for_nothing_is_forgotten() -> None:
    workers = SharedWorkers("texts", each_at_a_time=1, each_waiting=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="1"):
            await workers.run("a", _raise, (1,))
    while workers._shares:
        await asyncio.sleep(0)
    workers.close()


def _raise(of: Sequence[int]) -> None:
    raise ValueError(of)


def test_the_documentation_names_the_bounds() -> None:
    rows = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8").splitlines()
    for what, bound in (
        ("prompts that are encoded at a time", f"{AT_A_TIME}, and {MOST_WAITING} that wait"),
        ("one rendering of the chat template", f"{RENDER_SECONDS:g} seconds"),
        ("stop strings; bad words", f"4; {MAX_BAD_WORDS}, "),
    ):
        (row,) = (row for row in rows if row.startswith(f"| {what} | "))
        assert bound in row


async def test_errors_come_back() -> None:
    workers = Workers("texts", at_a_time=1, most_waiting=0)
    with pytest.raises(ValueError, match=r"\(1,\)"):
        await workers.run(_raise, (1,))
    assert await workers.run(len, (1,)) == 1, "the place is free again"
    workers.close()


async def test_a_place_is_free_again_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers("texts", at_a_time=1, most_waiting=0)

    def no_more(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="can't start"):
                await workers.run(len, (1,))
    assert await workers.run(len, (1,)) == 1
    workers.close()


async def test_what_was_given_up_is_not_kept() -> None:
    class Large:
        pass

    workers, go, large = Workers("texts", at_a_time=1, most_waiting=1), threading.Event(), Large()
    first = asyncio.create_task(workers.run(go.wait, 30))
    second = asyncio.create_task(workers.run(id, large))
    while workers.waiting < 1:
        await asyncio.sleep(0)
    kept = weakref.ref(large)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    del large, second
    gc.collect()
    assert kept() is None, "though the pool has not come to it yet"
    go.set()
    assert await first
    workers.close()
