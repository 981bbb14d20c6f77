"""The embedded engine: what a request asks for, gives up or is refused."""

import asyncio
import queue
import threading
from collections.abc import Awaitable
from typing import Any

import pytest

from guards.core.verdict import Reading
from server.engines.base import EngineInfo, Load
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.errors import EngineBusyError, PromptError, PromptTooLongError
from server.engines.events import FinishReason
from server.engines.request import EngineRequest, Sampling
from tests.served import forget_prompt, retain_prompt
from tests.server.engines.embedded.tiny_engine import Answer, Served, ask, guarded, run


def test_no_thread_in_which_torch_computed_outlives_the_start(served: Served) -> None:
    """But for the batcher's: each keeps threads of OpenMP's, and too many of these sleep between operations."""
    seen: list[str] = []

    class Telling(EmbeddedEngine):
        def _describe(self) -> EngineInfo:
            seen.append(threading.current_thread().name)
            return super()._describe()

    async def work() -> None:
        engine = Telling(guarded(served))
        await engine.start()
        for thread in threading.enumerate():
            if thread.name in seen:
                thread.join(30)
                assert not thread.is_alive()
        await engine.stop()

    asyncio.run(work())
    assert seen
    assert threading.main_thread().name not in seen, "positive control: it is a thread of its own"


def test_giving_up_frees_the_place_and_disturbs_nobody(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> tuple[Answer, Answer]:
        before = await ask(engine, retain_prompt(2), max_tokens=60)
        stream = engine.submit(EngineRequest("gone", retain_prompt(1), Sampling(max_tokens=200, temperature=0)))
        other = asyncio.create_task(ask(engine, retain_prompt(2), "other", max_tokens=60))
        await anext(stream)
        await stream.aclose()
        after = await other
        never = engine.submit(EngineRequest("never", retain_prompt(1), Sampling(max_tokens=200)))
        await never.aclose()
        assert engine.load().running == 0
        return before, after

    before, after = run(guarded(served), work)
    assert (before.text, before.finish.reason) == (after.text, after.finish.reason)


def test_a_check_whose_caller_hangs_up_frees_its_place(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> None:
        for index in range(3):
            task = asyncio.create_task(engine.check(retain_prompt(0), f"c{index}"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert engine.load().running == 0
        assert (await engine.check(retain_prompt(0), "last"))[0].reading is Reading.OUTSIDE

    run(guarded(served, max_running=1, max_waiting=1), work)


def test_a_full_queue_and_impossible_requests_are_refused_at_once(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> None:
        def submit(name: str, prompt: tuple[int, ...], tokens: int = 1) -> Any:
            return engine.submit(EngineRequest(name, prompt, Sampling(max_tokens=tokens)))

        with pytest.raises(PromptTooLongError, match="wanted at most 256"):
            submit("long", retain_prompt(0), 256)
        with pytest.raises(PromptError, match="empty"):
            submit("empty", ())
        with pytest.raises(PromptError, match="token id 64"):
            submit("id", (1, 64))
        held = [submit("a", retain_prompt(0)), submit("b", retain_prompt(1))]
        with pytest.raises(EngineBusyError, match="queue is full"):
            submit("c", retain_prompt(2))
        assert set((await engine.verify()).values()) == {None}, "canaries are asked all the same"
        for stream in held:
            await stream.aclose()
        assert (await ask(engine, retain_prompt(2))).finish.verified

    run(guarded(served, max_running=1, max_waiting=1), work)


PROMPT = tuple(2 + index % 40 for index in range(100))
"""Longer than three pages of the cache."""


def counted(engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each pass from now on: those of a prompt that come out of the cache are not passed."""
    passed: list[int] = []
    prepare = engine._sampler.prepare_tensor_args

    def counting(requests_in_batch: list[Any], arg_storage: Any) -> Any:
        passed.append(sum(future.query_length for future in requests_in_batch))
        return prepare(requests_in_batch, arg_storage)

    monkeypatch.setattr(engine._sampler, "prepare_tensor_args", counting)
    return passed


def test_canaries_are_computed_anew(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everybody else's prompts are taken from the cache: what a guard read once is no proof."""

    async def work(engine: EmbeddedEngine) -> None:
        passed = counted(engine, monkeypatch)
        await ask(engine, PROMPT, max_tokens=4)
        passed.clear()
        await engine.check(PROMPT, "check")
        assert passed[0] < 100, "positive control"
        passed.clear()
        await engine.read(PROMPT, "canary")
        assert passed == [100]

    run(guarded(served), work)


def test_nobody_finds_in_the_cache_what_another_tenant_asked(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """How soon the first token comes would tell of each page of a guessed prompt whether it was sent before."""

    async def work(engine: EmbeddedEngine) -> None:
        passed = counted(engine, monkeypatch)

        async def computed(asking: Awaitable[object]) -> int:
            passed.clear()
            await asking
            return passed[0]

        assert await computed(ask(engine, PROMPT, tenant="a", max_tokens=4)) == 100
        assert await computed(ask(engine, PROMPT, tenant="a", max_tokens=1)) < 100, "a tenant's own are found"
        assert await computed(engine.check(PROMPT, "c", tenant="a")) < 100
        assert await computed(engine.check(PROMPT, "c", tenant="b")) == 100
        assert await computed(ask(engine, PROMPT, tenant="b", max_tokens=1)) == 100
        assert await computed(ask(engine, PROMPT, max_tokens=4)) == 100
        assert await computed(ask(engine, PROMPT, tenant="b", max_tokens=4)) == 100
        assert await computed(ask(engine, PROMPT, tenant="b", max_tokens=1)) < 100

    run(guarded(served), work)


def test_canaries_go_first(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> None:
        long = Sampling(max_tokens=30, temperature=0, ignore_eos=True)
        held = [engine.submit(EngineRequest(f"r{index}", retain_prompt(index), long)) for index in range(4)]
        await engine.read(retain_prompt(4), "canary")
        assert engine._answers["r3"].generated == 0, "they would have waited for all of these"
        for stream in held:
            assert [event async for event in stream]

    run(guarded(served, max_running=1, max_waiting=4), work)


def test_a_request_that_could_not_be_queued_leaves_nothing_behind(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise queue.Full

    async def work(engine: EmbeddedEngine) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(engine._manager, "add_request", full)
            for index in range(3):
                with pytest.raises(queue.Full):
                    engine.submit(EngineRequest(f"r{index}", retain_prompt(0), Sampling(max_tokens=1)))
        assert engine.load() == Load(running=0, waiting=0)
        assert engine._sampler._answers == engine._answers == {}
        assert (await ask(engine, retain_prompt(0), "r0")).finish.verified

    run(guarded(served, max_running=1, max_waiting=1), work)


def test_seeds_repeat_and_do_not_depend_on_the_batch(served: Served) -> None:
    hot: dict[str, Any] = {"temperature": 1.5, "seed": 5, "max_tokens": 16}

    async def work(engine: EmbeddedEngine) -> None:
        alone = await ask(engine, retain_prompt(4), **hot)
        crowd = await asyncio.gather(*(ask(engine, retain_prompt(4), f"r{i}", **{**hot, "seed": i}) for i in range(8)))
        assert crowd[5].text == alone.text
        assert len({answer.text for answer in crowd}) > 1
        nucleus = await ask(engine, retain_prompt(4), temperature=1.5, top_p=1e-6, max_tokens=16)
        assert nucleus.text == (await ask(engine, retain_prompt(4), max_tokens=16)).text, "a tiny nucleus is greedy"

    run(guarded(served), work)


def test_logprobs_stop_strings_and_length(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> None:
        full = await ask(engine, retain_prompt(4), logprobs=3, max_tokens=6)
        assert full.finish.reason is FinishReason.LENGTH
        assert len(full.logprobs) == full.finish.completion_tokens == 6
        for entry in full.logprobs:
            assert entry.logprob == pytest.approx(entry.top[0][2]), "greedy draws the most likely token"
            assert len(entry.top) == 3
        word = full.logprobs[2].token.strip()
        stopped = await ask(engine, retain_prompt(4), max_tokens=6, stop=(word,))
        assert stopped.finish.reason is FinishReason.STOP
        assert word not in stopped.text
        assert full.text.startswith(stopped.text)
        assert engine.load().running == 0

    run(guarded(served), work)


def test_an_abstention_shows_no_logprobs(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, forget_prompt(2), logprobs=5)

    answer = run(guarded(served), work)
    assert answer.finish.reason is FinishReason.ABSTAIN
    assert answer.logprobs == ()
