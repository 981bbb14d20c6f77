"""A key of a request's JSON may be there once, at every depth: a gateway in front may have looked at the other."""

import asyncio
import gc
import json
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from fastapi.dependencies.utils import solve_dependencies

from server.context import RequestContext
from server.engines.errors import EngineBusyError
from server.engines.scripted.engine import ScriptedEngine
from server.errors import InvalidRequestError
from server.large_bodies import LARGE, MOST_WAITING, REST, LargeBodies, Pace
from server.routes.posted import each_once
from tests.server.harness import (
    ATTRIBUTIONS,
    CHAT,
    CHECKS,
    COMPLETIONS,
    GUARDRAIL,
    MODERATIONS,
    RESPONSES,
    Exchange,
    completion,
    serving,
)

pytestmark = pytest.mark.anyio

TWICE = {
    COMPLETIONS: '{"prompt": "first", "prompt": "last"}',
    CHAT: '{"messages": [{"role": "user", "content": "first", "content": "last"}]}',
    RESPONSES: '{"input": "first", "input": "last"}',
    CHECKS: '{"prompt": "first", "prompt": "last"}',
    ATTRIBUTIONS: '{"prompt": "first", "prompt": "last"}',
    MODERATIONS: '{"input": "first", "input": "last"}',
    GUARDRAIL: '{"texts": ["first"], "texts": ["last"], "input_type": "request"}',
    "/tokenize": '{"prompt": "first", "prompt": "last"}',
    "/detokenize": '{"tokens": [97], "tokens": [98]}',
}


async def stays() -> None:
    """A caller who does not hang up."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("path", TWICE)
async def test_a_key_that_is_there_twice_is_refused(path: str) -> None:
    async with serving(anonymous_role="operator") as served:
        response = await served.client.post(path, content=TWICE[path], headers={"content-type": "application/json"})
        assert response.status_code == 400, response.text
        assert "more than once" in response.json()["error"]["message"]
        assert served.engine.submitted == []


def test_looking_for_the_key_is_no_attack_of_its_own() -> None:
    class Key(str):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Key.compared += 1
            return super().__eq__(other)

        __hash__ = str.__hash__

    count = 2000
    with pytest.raises(InvalidRequestError, match="'1999' more than once"):
        each_once([(Key(number), None) for number in range(count)] + [(Key(count - 1), None)])
    assert Key.compared < 10 * count


async def test_the_same_key_in_two_objects_is_two_keys() -> None:
    async with serving() as served:
        body = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
        response = await served.client.post(
            CHAT, content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert response.status_code == 200


async def test_what_is_no_json_is_still_said_so() -> None:
    async with serving() as served:
        headers = {"content-type": "application/json"}
        for body, says in ((b"{", "not valid JSON"), (b'{"prompt": "\xff"}', "not valid JSON in UTF-8")):
            response = await served.client.post(COMPLETIONS, content=body, headers=headers)
            assert response.status_code == 400
            assert says in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (CHAT, {"messages": [{"role": "user", "content": ""}] * 2049}, "2048"),
        (RESPONSES, {"input": [{"role": "user", "content": "a"}] * 2049}, "2048"),
        (CHECKS, {"messages": [{"role": "user", "content": "a"}] * 2049}, "2048"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}] * 2049}, "2048"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 10_000}]}, "10000 objects"),
        (GUARDRAIL, {"input_type": "request", "texts": ["a"], "tools": [{"a": {}}] * 5_000}, "10000 objects"),
    ],
)
async def test_more_objects_than_anybody_has_are_not_looked_at(path: str, body: dict[str, object], says: str) -> None:
    async with serving(anonymous_role="operator") as served:
        error = await served.error(path, body)
        assert error["status"] == 400
        assert says in error["message"]
        assert served.engine.submitted == []


async def test_as_many_messages_as_there_may_be_are_taken() -> None:
    async with serving(ScriptedEngine(max_model_tokens=1 << 15)) as served:
        response = await served.post(CHAT, {"messages": [{"role": "user", "content": ""}] * 2048, "max_tokens": 1})
        assert response.status_code == 200, response.text


async def test_large_bodies_take_turns_and_leave_the_event_loop_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands but for what is read; the event loop's timers run at once and tell what they were set to."""
    clock, rests, order = 0.0, list[float](), list[str]()
    monkeypatch.setattr("server.large_bodies.time.perf_counter", lambda: clock)
    loop = asyncio.get_running_loop()

    def call_later(delay: float, callback: Callable[[], object]) -> asyncio.Handle:
        rests.append(delay)
        order.append("rest")
        return loop.call_soon(callback)

    monkeypatch.setattr(loop, "call_later", call_later)
    bodies = LargeBodies()

    def read(name: str, seconds: float) -> str:
        nonlocal clock
        clock += seconds
        order.append(name)
        return name

    def broken() -> None:
        read("broken", 4.0)
        raise InvalidRequestError("odd")

    async def fails() -> None:
        with pytest.raises(InvalidRequestError):
            await bodies.read("a", LARGE, broken, stays)

    first = bodies.read("a", LARGE, lambda: read("first", 2.0), stays)
    small = bodies.read("a", LARGE - 1, lambda: read("small", 1.0), stays)
    last = bodies.read("a", LARGE, lambda: read("last", 1.0), stays)
    await asyncio.gather(first, fails(), small, last)
    await asyncio.sleep(0)
    assert [name for name in order if name != "rest"] == ["first", "small", "broken", "last"]
    assert order.index("rest") < order.index("broken"), "nothing large is read between a body and its rest"
    assert rests == [9.0, 12.0, 3.0], "three times what was read before the event loop had a turn, others' too"


async def test_a_large_body_whose_sender_hung_up_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def looking(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        looked_at.append(len(pairs))
        return dict(pairs)

    monkeypatch.setattr("server.routes.posted.each_once", looking)
    body = completion("a" * LARGE)
    async with serving() as served:
        turn = served.app.state.services.large_bodies._turn
        await turn.acquire()
        exchange = Exchange.of(served.app, COMPLETIONS, body)
        running = asyncio.create_task(exchange.run())
        while not served.app.state.services.large_bodies._lines:
            await asyncio.sleep(0)
        exchange.hang_up.set()
        await running
        turn.release()
        assert not looked_at
        assert not served.app.state.services.large_bodies._lines
        await served.post(COMPLETIONS, body)
        assert looked_at, "positive control"


async def test_too_many_large_bodies_are_told_to_come_later() -> None:
    bodies = LargeBodies()
    waiting = [asyncio.ensure_future(bodies.read("a", LARGE, lambda: None, stays)) for _ in range(MOST_WAITING + 1)]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError):
        await bodies.read("a", LARGE, lambda: None, stays)
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_tenants_have_turns_one_after_another_whoever_sends_more(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda _, callback: loop.call_soon(callback))
    bodies, order = LargeBodies(), list[str]()
    waiting = [
        asyncio.ensure_future(bodies.read(tenant, LARGE, lambda tenant=tenant: order.append(tenant), stays))  # type: ignore[misc]
        for tenant in ("a",) * (MOST_WAITING + 1) + ("b",) * 2
    ]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError):
        await bodies.read("a", LARGE, lambda: None, stays)
    await asyncio.gather(*waiting)
    first, second = (at for at, tenant in enumerate(order) if tenant == "b")
    assert first <= 2
    assert second <= 4
    assert len(order) == MOST_WAITING + 3
    assert not bodies._lines


async def test_large_bodies_come_in_at_a_pace_and_small_ones_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    async def take(_: Pace, __: str, count: int) -> None:
        taken.append(count)

    monkeypatch.setattr(Pace, "take", take)
    async with serving() as served:
        for body in (completion("a"), completion("a" * LARGE)):
            sent = json.dumps(body).encode()
            half = len(sent) // 2
            exchange = Exchange(served.app, COMPLETIONS, [sent[:half], sent[half:]])
            running = asyncio.create_task(exchange.run())
            while (await exchange.sent.get())["type"] != "http.response.start":
                pass
            exchange.hang_up.set()
            await running
    assert taken == [len(sent) - half], "of the large one, from where it is large"


async def test_a_pace_is_of_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    pace, loop = Pace(1000.0), asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)
    monkeypatch.setattr("server.large_bodies.asyncio.sleep", sleep)
    for count in (500, 1000, 1):
        await pace.take("a", count)
    assert slept == pytest.approx([0.5, 1.5]), "the first does not wait"
    now += 10
    await pace.take("b", 1)
    assert len(slept) == 2, "nor does who comes later"


async def test_of_too_many_that_come_in_the_last_is_told_to_come_later() -> None:
    """Each that waits holds what has come of it."""
    pace = Pace(1.0)
    waiting = [asyncio.ensure_future(pace.take("a", 1000)) for _ in range(MOST_WAITING + 1)]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError):
        await pace.take("a", 1)
    waiting.append(asyncio.ensure_future(pace.take("b", 1)))
    await asyncio.sleep(0)
    assert pace._waiting == {"a": MOST_WAITING, "b": 1}, "another tenant's is not refused for it"
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not pace._waiting


async def test_too_many_are_a_429_over_http_too() -> None:
    """FastAPI takes what is raised while a body is read for a body that cannot be read."""
    body = completion("a" * LARGE)
    async with serving() as served:
        large = served.app.state.services.large_bodies
        await large._turn.acquire()
        waiting = [asyncio.create_task(served.post(COMPLETIONS, body)) for _ in range(MOST_WAITING)]
        while not large._lines or next(iter(large._lines.values())).waiting < MOST_WAITING:
            await asyncio.sleep(0)
        refused = await served.post(COMPLETIONS, body)
        assert refused.status_code == 429, refused.text
        assert "try again" in refused.json()["error"]["message"]
        large._turn.release()
        waiting[0].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_what_is_checked_behind_a_large_body_counts_towards_its_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI checks a body in the step in which it was read, or others would not have their time after it."""
    clock, rests = 0.0, list[float]()
    check, loop = solve_dependencies, asyncio.get_running_loop()
    call_later = loop.call_later

    async def slow_check(**given: Any) -> Any:
        nonlocal clock
        clock += 2.0
        return await check(**given)

    async with serving() as served:
        release = served.app.state.services.large_bodies._turn.release

        def resting(delay: float, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
            if callback != release:
                return call_later(delay, callback, *args)
            rests.append(delay)
            return loop.call_soon(callback)

        monkeypatch.setattr("server.large_bodies.time.perf_counter", lambda: clock)
        monkeypatch.setattr(loop, "call_later", resting)
        monkeypatch.setattr("fastapi.routing.solve_dependencies", slow_check)
        await served.post(COMPLETIONS, completion("a" * LARGE))
    assert rests == [REST * 2.0]


async def test_a_refused_body_is_gone_without_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[weakref.ref[RequestContext]] = []

    class Watched(RequestContext):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            known.append(weakref.ref(self))

    monkeypatch.setattr("server.middleware.RequestContext", Watched)
    async with serving() as served:
        gc.collect()
        gc.disable()
        try:
            for body in ({"prompt": "a", "odd": 1}, {"prompt": 5}, {"prompt": "a", "n": 10_000}):
                assert (await served.post(COMPLETIONS, body)).status_code == 400
            await asyncio.sleep(0)
            assert [each() for each in known] == [None] * 3
        finally:
            gc.enable()
