"""The embedded engine on a tiny random-weight model: it guards, and how requests are batched changes nothing."""

import asyncio
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from guards.artifact.store import read_artifact, write_artifact
from guards.core.verdict import GuardMode, Reading, Scope, Stage
from guards.errors import SkillguardError
from guards.inside.transformers.loading import load_model
from guards.methods.registry import CUBE
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.errors import EngineStoppedError, PromptError
from server.engines.events import FinishReason
from server.engines.options import EmbeddedOptions
from server.engines.request import EngineRequest, Message, Sampling
from tests.served import forget_prompt, ksd_guard, retain_prompt, write_guard
from tests.server.engines.embedded.tiny_engine import Answer, Served, ask, guarded, run, unguarded, watching


def test_it_abstains_on_the_skill_and_keeps_the_rest(served: Served) -> None:
    async def both(engine: EmbeddedEngine) -> tuple[Answer, Answer]:
        return await ask(engine, forget_prompt(0)), await ask(engine, retain_prompt(0))

    forgotten, kept = run(unguarded(served), both)
    assert forgotten.text, "without the guard the model answers"
    refused, same = run(guarded(served), both)
    assert refused.text == ""
    assert refused.finish.reason is FinishReason.ABSTAIN
    assert refused.finish.completion_tokens == 0
    hit = refused.finish.abstained_on
    assert hit is not None
    assert hit.score.tau is not None
    assert hit.score.score <= hit.score.tau
    assert hit.score.position == len(forget_prompt(0)) - 1
    assert same == kept or (same.text == kept.text and same.finish.verified)


def test_canaries_agree_and_a_changed_one_is_named(served: Served, tmp_path: Path) -> None:
    async def verify(engine: EmbeddedEngine) -> dict[str, str | None]:
        return dict(await engine.verify())

    options = EmbeddedOptions(model=str(served[0]), artifacts=served[1:])
    assert run(options, verify) == {"ksd-tens": None, "na-tens": None}
    loaded = load_model(served[0], "cpu")
    guard = ksd_guard(loaded)
    write_guard(tmp_path / "moved", loaded, guard)
    artifact = read_artifact(tmp_path / "moved")
    parameters = CUBE.dump(replace(guard, cubes=(replace(guard.cubes[0], tau=0.001),)))[0]
    write_artifact(
        tmp_path / "moved", artifact.manifest.model_copy(update={"parameters": parameters}), artifact.tensors
    )
    moved = run(EmbeddedOptions(model=str(served[0]), artifacts=(tmp_path / "moved",)), verify)
    assert "does not fire" in (moved["moved"] or "")


def test_32_mixed_requests_at_once_equal_one_by_one(served: Served) -> None:
    prompts = [forget_prompt(i) if i % 2 else retain_prompt(i) for i in range(32)]

    async def alone(engine: EmbeddedEngine) -> list[Answer]:
        return [await ask(engine, prompt, f"r{i}") for i, prompt in enumerate(prompts)]

    async def together(engine: EmbeddedEngine) -> list[Answer]:
        return list(await asyncio.gather(*(ask(engine, prompt, f"r{i}") for i, prompt in enumerate(prompts))))

    one, many = run(guarded(served), alone), run(guarded(served), together)
    assert [a.finish.reason for a in one] == [a.finish.reason for a in many]
    assert [a.text for a in one] == [a.text for a in many]
    assert [a.finish.reason for a in one].count(FinishReason.ABSTAIN) == 16


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_tokens": 8, "max_running": 4},
        {"kv_cache_tokens": 192, "max_running": 16},
        {"max_running": 1},
    ],
    ids=["prompts prefilled in chunks", "answers preempted for want of cache", "one at a time"],
)
def test_verdicts_do_not_depend_on_scheduling(served: Served, options: dict[str, int]) -> None:
    prompts = [(forget_prompt(i) if i % 2 else retain_prompt(i)) for i in range(16)]

    async def together(engine: EmbeddedEngine) -> list[tuple[str, FinishReason]]:
        answers = await asyncio.gather(
            *(ask(engine, prompt, f"r{i}", max_tokens=24) for i, prompt in enumerate(prompts))
        )
        return [(answer.text, answer.finish.reason) for answer in answers]

    assert run(guarded(served, **options), together) == run(guarded(served), together)


def test_a_cached_prefix_changes_no_verdict(served: Served) -> None:
    long = (1, *([20, 21, 22, 23] * 30))

    async def twice(engine: EmbeddedEngine) -> None:
        prompts = [(*long, 10, 11, 12), (*long, 10, 11, 12), (*long, 40)]
        first = [(await ask(engine, p, f"cold{i}")).finish.prompt_scores for i, p in enumerate(prompts)]
        again = [(await ask(engine, p, f"warm{i}")).finish.prompt_scores for i, p in enumerate(prompts)]
        for cold, warm in zip(first, again, strict=True):
            assert cold[0].reading is warm[0].reading
            assert cold[0].score == pytest.approx(warm[0].score, rel=1e-4)

    run(guarded(served), twice)


def test_shadow_counts_and_changes_nothing(served: Served) -> None:
    async def shadow(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, forget_prompt(3), policy=watching(engine))

    async def plain(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, forget_prompt(3))

    seen = run(guarded(served), shadow)
    assert seen.text == run(unguarded(served), plain).text
    assert [hit.mode for hit in seen.finish.hits] == [GuardMode.SHADOW]


def test_scope_generation_judges_generated_tokens_only(served: Served, tmp_path: Path) -> None:
    loaded = load_model(served[0], "cpu")
    guard = ksd_guard(loaded, scope=Scope.GENERATION)
    folder = write_guard(tmp_path / "late", loaded, guard)
    options = EmbeddedOptions(model=str(served[0]), artifacts=(folder,))

    async def work(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, forget_prompt(1))

    answer = run(options, work)
    assert answer.finish.prompt_scores[0].reading is Reading.INSIDE
    assert answer.finish.completion_tokens > 0
    assert all(hit.score.stage is Stage.GENERATION for hit in answer.finish.hits)


def test_check_reads_without_generating(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> tuple[Reading, Reading]:
        inside = await engine.check(forget_prompt(5), "a")
        outside = await engine.check(retain_prompt(5), "b")
        return inside[0].reading, outside[0].reading

    assert run(guarded(served), work) == (Reading.INSIDE, Reading.OUTSIDE)


def test_chat_prompts_pass_through_the_template(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> None:
        assert engine.encode_chat([Message("user", "w10 w11")]) == (1, 10, 11, 5)
        with pytest.raises(PromptError, match="unknown role"):
            engine.encode_chat([Message("tool", "w10")])

    run(guarded(served), work)


def test_an_engine_that_did_not_start_stops(tmp_path: Path) -> None:
    """Else the error of its stop would take the place of why it did not start."""

    async def stops() -> None:
        engine = EmbeddedEngine(EmbeddedOptions(model=str(tmp_path), artifacts=()))
        with pytest.raises(SkillguardError, match=r"config\.json"):
            await engine.start()
        await engine.stop()
        await EmbeddedEngine(EmbeddedOptions(model=str(tmp_path), artifacts=())).stop()

    asyncio.run(stops())


def test_a_stopped_engine_holds_no_model(served: Served) -> None:
    """Whoever still holds the engine, or one of its streams: another one may need the memory."""

    async def held() -> None:
        engine = EmbeddedEngine(guarded(served))
        await engine.start()
        stream = engine.submit(EngineRequest("r", retain_prompt(0), Sampling(max_tokens=64, ignore_eos=True)))
        await anext(stream)
        model, cache = weakref.ref(engine._loaded.model), weakref.ref(engine._manager.batch_processor.cache)
        assert model() is not None
        assert cache() is not None
        await engine.stop()
        await stream.aclose()
        assert model() is None
        assert cache() is None
        with pytest.raises(EngineStoppedError):
            engine.submit(EngineRequest("s", retain_prompt(0), Sampling(max_tokens=1)))

    asyncio.run(held())
