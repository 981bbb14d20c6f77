"""Nothing is generated before every guard has proved itself, and the reason is said."""

import asyncio
from collections.abc import Mapping

import pytest

from guards.errors import ArtifactMismatchError
from server.engines.events import Chunk, Finish, FinishReason
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, guard, score
from server.readiness import Phase, unverified
from tests.server.harness import (
    CHAT,
    CHECKS,
    COMPLETIONS,
    GUARDRAIL,
    MODERATIONS,
    Exchange,
    Served,
    chat,
    completion,
    serving,
)

pytestmark = pytest.mark.anyio

MODEL_ROUTES: tuple[tuple[str, dict[str, object]], ...] = (
    (CHAT, chat()),
    (CHAT, chat(stream=True)),
    (COMPLETIONS, completion()),
    (CHECKS, completion()),
    (MODERATIONS, {"input": "hi"}),
    (GUARDRAIL, {"input_type": "request", "texts": ["hi"]}),
)


async def assert_refused(served: Served, says: str, retry_after: str | None, ready_status: str) -> None:
    for path, body in MODEL_ROUTES:
        response = await served.post(path, body)
        assert response.status_code == 503
        error = response.json()["error"]
        assert says in error["message"]
        assert (error["type"], error["code"]) == ("server_error", "not_ready")
        assert response.headers.get("retry-after") == retry_after
        assert (response.headers.get("x-should-retry") == "false") == (retry_after is None)
    ready = await served.client.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, ready_status)
    assert await served.metric("skillguard_ready") == 0
    assert served.engine.submitted == []


async def test_health_answers_while_the_engine_loads() -> None:
    engine = ScriptedEngine()
    engine.may_start.clear()
    async with serving(engine, settled=False) as served:
        assert (await served.client.get("/health")).json() == {"status": "ok"}
        await assert_refused(served, "still loading", "5", "starting")
        assert (await served.client.get("/v1/models")).status_code == 503
        assert (await served.client.get("/v1/guards")).status_code == 503
        engine.may_start.set()
        await served.readiness.settled.wait()
        assert (await served.client.get("/ready")).json() == {"status": "ready", "guards": {"demo": True}}
        assert (await served.post(CHAT, chat())).status_code == 200
        assert await served.metric("skillguard_ready") == 1


async def test_nothing_is_generated_while_guards_are_verified() -> None:
    engine = ScriptedEngine()
    engine.may_verify.clear()
    async with serving(engine, settled=False) as served:
        while served.readiness.phase is Phase.STARTING:
            await asyncio.sleep(0)
        await assert_refused(served, "still being verified", "5", "verifying")
        guards = (await served.client.get("/v1/guards")).json()["data"]
        assert [row["verified"] for row in guards] == [False]


async def test_failed_verification_is_final_and_names_the_guard() -> None:
    engine = ScriptedEngine(guards=(guard("good"), guard("bad")))
    engine.verification = {"good": None, "bad": "canary 2: wanted abstain, got allow"}
    async with serving(engine, anonymous_role="operator") as served:
        assert served.readiness.phase is Phase.FAILED
        await assert_refused(served, "Verification failed for guard bad;", None, "failed")
        assert "canary" not in (await served.post(CHAT, chat())).text
        assert "canary" not in (await served.client.get("/ready")).text
        rows = {row["name"]: row for row in (await served.client.get("/v1/guards")).json()["data"]}
        assert (rows["good"]["verified"], rows["bad"]["verified"]) == (True, False)
        assert rows["bad"]["reason"] == "canary 2: wanted abstain, got allow"
        assert (await served.client.get("/health")).status_code == 200


@pytest.mark.parametrize("started", [False, True])
async def test_canaries_that_are_never_answered_close_the_server(
    started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would hold reloads up for ever, and end the schedule without a word."""

    class Hangs(ScriptedEngine):
        hanging = not started

        async def verify(self) -> Mapping[str, str | None]:
            if self.hanging:
                await asyncio.Event().wait()
            return await super().verify()

    monkeypatch.setattr("server.readiness.VERIFY_SECONDS", 0.05)
    engine = Hangs()
    async with serving(engine, anonymous_role="operator") as served:
        if started:
            assert served.readiness.ready, "positive control"
            engine.hanging = True
            await served.readiness.check_again()
        assert served.readiness.phase is Phase.FAILED
        assert served.readiness.failure is not None
        assert "the canaries were not answered within 0.05 seconds" in served.readiness.failure


async def test_silence_about_a_guard_is_no_proof() -> None:
    engine = ScriptedEngine(guards=(guard("a"), guard("b")))
    engine.verification = {"a": None}
    async with serving(engine) as served:
        await assert_refused(served, "Verification failed for guard b;", None, "failed")
    assert unverified({}, engine.info).keys() == {"a", "b"}


@pytest.mark.parametrize("error", [ArtifactMismatchError("wanted width 64, got 32"), RuntimeError("CUDA")])
async def test_engine_that_does_not_start(error: Exception) -> None:
    engine = ScriptedEngine()
    engine.start_error = error
    async with serving(engine) as served:
        assert str(error) in str(served.readiness.failure)
        await assert_refused(served, "did not start", None, "failed")
        assert str(error) not in (await served.post(CHAT, chat())).text


async def test_unknown_guard_in_shadow_fails_the_start() -> None:
    async with serving(shadow=("demo", "dmeo")) as served:
        assert served.readiness.failure == (
            "shadow: no guard named 'dmeo'; known: demo. Correct the name, or load the artifact"
        )
        await assert_refused(served, "did not start", None, "failed")


async def test_dead_engine() -> None:
    async with serving() as served:
        served.engine.alive = False
        await assert_refused(served, "must be restarted", None, "dead")
        assert (await served.client.get("/health")).status_code == 503


async def test_engine_is_stopped_with_the_app() -> None:
    engine = ScriptedEngine()
    engine.may_start.clear()
    async with serving(engine, settled=False):
        pass
    assert engine.stops == 1


AGREES = pytest.mark.parametrize("agrees", [True, False])
WHOLE = Finish(FinishReason.STOP, 0, 2, verified=True, prompt_scores=(score(guard()),))


async def _checked_again(served: Served, *, agrees: bool) -> None:
    """As on schedule, while something runs."""
    if not agrees:
        served.engine.verification = {"demo": "canary 0: got another score"}
    await served.readiness.check_again()
    assert served.readiness.ready is agrees


@AGREES
@pytest.mark.parametrize(("path", "body"), MODEL_ROUTES)
async def test_what_runs_ends_where_guards_no_longer_agree(path: str, body: dict[str, object], agrees: bool) -> None:
    """Nobody is told what guards let out, or judged, that were found broken before it was done."""
    more = asyncio.Event()
    engine = ScriptedEngine([Script((more, Chunk("Take", 1), Chunk(" eggs", 1), WHOLE))])
    engine.may_check.clear()
    async with serving(engine) as served:
        asked = asyncio.create_task(served.post(path, body))
        while not engine.submitted and not engine.checked:
            await asyncio.sleep(0)
        await _checked_again(served, agrees=agrees)
        more.set()
        engine.may_check.set()
        got = await asked
    assert got.status_code == (200 if agrees else 500)
    assert agrees or got.json()["error"]["code"] == "guard_error"


@AGREES
async def test_a_stream_that_has_begun_ends_where_guards_no_longer_agree(agrees: bool) -> None:
    more = asyncio.Event()
    engine = ScriptedEngine([Script((Chunk("Take", 1), more, Chunk(" eggs", 1), WHOLE))])
    async with serving(engine) as served:
        exchange = Exchange.of(served.app, CHAT, chat(stream=True))
        running = asyncio.create_task(exchange.run())
        began = str(await exchange.next_data())
        assert "Take" in began
        await _checked_again(served, agrees=agrees)
        more.set()
        await running
        rest = "".join(exchange.sent.get_nowait()["body"].decode() for _ in range(exchange.sent.qsize()))
        assert engine.cancelled == ([] if agrees else [engine.submitted[0].request_id])
    assert ("eggs" in rest) is agrees
    assert ("[DONE]" in rest) is agrees
    assert ("guard_error" in rest) is not agrees


@AGREES
async def test_what_a_slow_reader_has_not_taken_yet_ends_there_too(agrees: bool) -> None:
    """It was drawn and observed before: a caller who does not read would choose when it goes out."""
    engine = ScriptedEngine([Script((Chunk("Take", 1), Chunk(" eggs", 1), WHOLE))])
    async with serving(engine) as served:
        exchange = Exchange.of(served.app, CHAT, chat(stream=True))
        reads, sends = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            sends.set()
            await reads.wait()

        exchange.before_sending = wait
        running = asyncio.create_task(exchange.run())
        await sends.wait()
        for _ in range(100):  # all of it is observed
            await asyncio.sleep(0)
        await _checked_again(served, agrees=agrees)
        reads.set()
        await running
        rest = "".join(exchange.sent.get_nowait().get("body", b"").decode() for _ in range(exchange.sent.qsize()))
    assert ("eggs" in rest) is agrees
    assert ("[DONE]" in rest) is agrees
    assert ("guard_error" in rest) is not agrees
