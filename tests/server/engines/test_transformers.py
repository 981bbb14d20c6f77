"""The embedded engine on a tiny random-weight model: it guards, it batches, and nothing fails open."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from guards.artifact import read_artifact, write_artifact
from guards.errors import ArtifactError, ArtifactMismatchError
from guards.loading import LoadedModel, load_model
from guards.methods import METHODS
from guards.prune import Importance, PruneGuard
from guards.verdict import GuardMode, Reading, Scope, Stage
from server.engines.base import (
    Chunk,
    EngineBusyError,
    EngineRequest,
    EngineStoppedError,
    Finish,
    FinishReason,
    Message,
    PromptError,
    PromptTooLongError,
    Sampling,
    TokenLogprob,
)
from server.engines.options import EmbeddedOptions
from server.engines.transformers import EmbeddedEngine
from tests.served import (
    forget_prompt,
    ksd_guard,
    retain_prompt,
    save_tiny_model,
    tiny_served,
    write_guard,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    text: str
    finish: Finish
    logprobs: tuple[TokenLogprob, ...]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return tiny_served(tmp_path_factory.mktemp("served"))


def run(options: EmbeddedOptions, work: Callable[[EmbeddedEngine], Awaitable[T]]) -> T:
    """Starts an engine, does the work, stops it."""

    async def main() -> T:
        engine = EmbeddedEngine(options)
        await engine.start()
        try:
            return await work(engine)
        finally:
            await engine.stop()

    return asyncio.run(main())


async def ask(engine: EmbeddedEngine, prompt: tuple[int, ...], name: str = "r", **sampling: Any) -> Answer:
    modes = sampling.pop("modes", {})
    settings = {"max_tokens": 8, "temperature": 0.0, **sampling}
    text, finish = "", None
    logprobs: tuple[TokenLogprob, ...] = ()
    async for event in engine.submit(EngineRequest(name, prompt, Sampling(**settings), modes)):
        assert finish is None, "nothing follows a Finish"
        if isinstance(event, Chunk):
            text, logprobs = text + event.text, (*logprobs, *event.logprobs)
        else:
            finish = event
    assert finish is not None
    return Answer(text, finish, logprobs)


def guarded(served: tuple[Path, Path, Path], **options: Any) -> EmbeddedOptions:
    return EmbeddedOptions(model=str(served[0]), artifacts=(served[1],), **options)


def unguarded(served: tuple[Path, Path, Path]) -> EmbeddedOptions:
    return EmbeddedOptions(model=str(served[0]))


def test_it_abstains_on_the_skill_and_keeps_the_rest(served: tuple[Path, Path, Path]) -> None:
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


def test_canaries_agree_and_a_changed_one_is_named(served: tuple[Path, Path, Path], tmp_path: Path) -> None:
    async def verify(engine: EmbeddedEngine) -> dict[str, str | None]:
        return dict(await engine.verify())

    options = EmbeddedOptions(model=str(served[0]), artifacts=served[1:])
    assert run(options, verify) == {"ksd-tens": None, "na-tens": None}
    loaded = load_model(served[0], "cpu")
    guard = ksd_guard(loaded)
    write_guard(tmp_path / "moved", loaded, guard, "ksd")
    artifact = read_artifact(tmp_path / "moved")
    parameters = METHODS["ksd"].dump(replace(guard, cubes=(replace(guard.cubes[0], tau=0.001),)))[0]
    write_artifact(
        tmp_path / "moved", artifact.manifest.model_copy(update={"parameters": parameters}), artifact.tensors
    )
    moved = run(EmbeddedOptions(model=str(served[0]), artifacts=(tmp_path / "moved",)), verify)
    assert "does not fire" in (moved["moved"] or "")


def test_32_mixed_requests_at_once_equal_one_by_one(served: tuple[Path, Path, Path]) -> None:
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
def test_verdicts_do_not_depend_on_scheduling(served: tuple[Path, Path, Path], options: dict[str, int]) -> None:
    prompts = [(forget_prompt(i) if i % 2 else retain_prompt(i)) for i in range(16)]

    async def together(engine: EmbeddedEngine) -> list[tuple[str, FinishReason]]:
        answers = await asyncio.gather(
            *(ask(engine, prompt, f"r{i}", max_tokens=24) for i, prompt in enumerate(prompts))
        )
        return [(answer.text, answer.finish.reason) for answer in answers]

    assert run(guarded(served, **options), together) == run(guarded(served), together)


def test_a_cached_prefix_changes_no_verdict(served: tuple[Path, Path, Path]) -> None:
    long = (1, *([20, 21, 22, 23] * 30))

    async def twice(engine: EmbeddedEngine) -> None:
        prompts = [(*long, 10, 11, 12), (*long, 10, 11, 12), (*long, 40)]
        first = [(await ask(engine, p, f"cold{i}")).finish.prompt_scores for i, p in enumerate(prompts)]
        again = [(await ask(engine, p, f"warm{i}")).finish.prompt_scores for i, p in enumerate(prompts)]
        for cold, warm in zip(first, again, strict=True):
            assert cold[0].reading is warm[0].reading
            assert cold[0].score == pytest.approx(warm[0].score, rel=1e-4)

    run(guarded(served), twice)


def test_shadow_counts_and_changes_nothing(served: tuple[Path, Path, Path]) -> None:
    async def shadow(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, forget_prompt(3), modes={"ksd-tens": GuardMode.SHADOW})

    async def plain(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, forget_prompt(3))

    seen = run(guarded(served), shadow)
    assert seen.text == run(unguarded(served), plain).text
    assert [hit.mode for hit in seen.finish.hits] == [GuardMode.SHADOW]


def test_scope_generation_judges_generated_tokens_only(served: tuple[Path, Path, Path], tmp_path: Path) -> None:
    loaded = load_model(served[0], "cpu")
    guard = ksd_guard(loaded, scope=Scope.GENERATION)
    folder = write_guard(tmp_path / "late", loaded, guard, "ksd")
    options = EmbeddedOptions(model=str(served[0]), artifacts=(folder,))

    async def work(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, forget_prompt(1))

    answer = run(options, work)
    assert answer.finish.prompt_scores[0].reading is Reading.INSIDE
    assert answer.finish.completion_tokens > 0
    assert all(hit.score.stage is Stage.GENERATION for hit in answer.finish.hits)


def test_a_broken_activation_is_an_error_and_lets_nothing_out(served: tuple[Path, Path, Path]) -> None:
    async def work(engine: EmbeddedEngine) -> tuple[Answer, Answer]:
        weight = engine._loaded.sites.layers[0].pre_activation.get_parameter("weight")
        saved = weight.clone()
        weight[0, 0] = torch.nan
        broken = await ask(engine, retain_prompt(0), "broken")
        weight.copy_(saved)
        return broken, await ask(engine, retain_prompt(0), "mended")

    broken, mended = run(guarded(served), work)
    assert (broken.text, broken.finish.reason, broken.finish.verified) == ("", FinishReason.ERROR, False)
    assert "INVALID" in (broken.finish.error or "")
    assert mended.finish.reason is not FinishReason.ERROR, "the engine serves on"


def test_hooks_taken_off_behind_its_back_stop_the_engine(served: tuple[Path, Path, Path]) -> None:
    async def work(engine: EmbeddedEngine) -> Answer:
        assert engine._attachment is not None
        engine._attachment.remove()
        answer = await ask(engine, retain_prompt(0))
        for _ in range(1000):
            if not engine.healthy():
                break
            await asyncio.to_thread(engine._manager._generation_thread.join, 0.01)
        assert not engine.healthy()
        with pytest.raises(EngineStoppedError):
            engine.submit(EngineRequest("later", retain_prompt(0), Sampling(max_tokens=1)))
        return answer

    answer = run(guarded(served), work)
    assert (answer.text, answer.finish.reason) == ("", FinishReason.ERROR)


def test_one_hook_that_does_not_run_is_missing_not_a_pass(served: tuple[Path, Path, Path]) -> None:
    async def work(engine: EmbeddedEngine) -> Answer:
        engine._loaded.sites.layers[0].key._forward_pre_hooks.clear()
        return await ask(engine, retain_prompt(0))

    answer = run(guarded(served), work)
    assert (answer.text, answer.finish.reason) == ("", FinishReason.ERROR)
    assert "MISSING" in (answer.finish.error or "")


def test_giving_up_frees_the_place_and_disturbs_nobody(served: tuple[Path, Path, Path]) -> None:
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


def test_a_check_whose_caller_hangs_up_frees_its_place(served: tuple[Path, Path, Path]) -> None:
    async def work(engine: EmbeddedEngine) -> None:
        for index in range(3):
            task = asyncio.create_task(engine.check(retain_prompt(0), f"c{index}"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert engine.load().running == 0
        assert (await engine.check(retain_prompt(0), "last"))[0].reading is Reading.OUTSIDE

    run(guarded(served, max_running=1, max_waiting=1), work)


def test_a_full_queue_and_impossible_requests_are_refused_at_once(served: tuple[Path, Path, Path]) -> None:
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
        for stream in held:
            await stream.aclose()
        assert (await ask(engine, retain_prompt(2))).finish.verified

    run(guarded(served, max_running=1, max_waiting=1), work)


def test_seeds_repeat_and_do_not_depend_on_the_batch(served: tuple[Path, Path, Path]) -> None:
    hot: dict[str, Any] = {"temperature": 1.5, "seed": 5, "max_tokens": 16}

    async def work(engine: EmbeddedEngine) -> None:
        alone = await ask(engine, retain_prompt(4), **hot)
        crowd = await asyncio.gather(*(ask(engine, retain_prompt(4), f"r{i}", **{**hot, "seed": i}) for i in range(8)))
        assert crowd[5].text == alone.text
        assert len({answer.text for answer in crowd}) > 1
        nucleus = await ask(engine, retain_prompt(4), temperature=1.5, top_p=1e-6, max_tokens=16)
        assert nucleus.text == (await ask(engine, retain_prompt(4), max_tokens=16)).text, "a tiny nucleus is greedy"

    run(guarded(served), work)


def test_logprobs_stop_strings_and_length(served: tuple[Path, Path, Path]) -> None:
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


def test_an_abstention_shows_no_logprobs(served: tuple[Path, Path, Path]) -> None:
    async def work(engine: EmbeddedEngine) -> Answer:
        return await ask(engine, forget_prompt(2), logprobs=5)

    answer = run(guarded(served), work)
    assert answer.finish.reason is FinishReason.ABSTAIN
    assert answer.logprobs == ()


def test_neuron_adjust_changes_answers_and_not_with_the_batch(served: tuple[Path, Path, Path]) -> None:
    options = EmbeddedOptions(model=str(served[0]), artifacts=(served[2],))
    prompts = [forget_prompt(i) for i in range(8)]

    async def together(engine: EmbeddedEngine) -> list[Answer]:
        return list(await asyncio.gather(*(ask(engine, p, f"r{i}", max_tokens=16) for i, p in enumerate(prompts))))

    async def alone(engine: EmbeddedEngine) -> list[Answer]:
        return [await ask(engine, p, f"r{i}", max_tokens=16) for i, p in enumerate(prompts)]

    plain, adjusted, single = run(unguarded(served), together), run(options, together), run(options, alone)
    assert [a.text for a in plain] != [a.text for a in adjusted]
    assert [a.text for a in adjusted] == [a.text for a in single]
    assert all(a.finish.neurons_shifted > 0 for a in adjusted)


def mask_guard(loaded: LoadedModel) -> PruneGuard:
    """The first neurons of every layer but the one whose key vectors the cube of these tests scores."""
    layers = range(1, len(loaded.sites.layers))
    return PruneGuard(
        {layer: torch.arange(128) for layer in layers},
        {layer: torch.arange(4) for layer in layers},
        d_attention=loaded.sites.d_attention,
        fraction=0.5,
        attention_fraction=0.25,
        steps=1,
        importance=Importance.ABS,
    )


def test_pruning_is_served_beside_a_detector_in_any_order(served: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Answers are those of a model without these columns, and the detector still abstains."""
    loaded = load_model(served[0], "cpu")
    guard = mask_guard(loaded)
    mask = write_guard(tmp_path / "sp-tens", loaded, guard, "selective-pruning")
    for layer, site in guard.places:
        loaded.sites.layers[layer].at(site).get_parameter("weight")[:, guard.at(site)[layer]] = 0
    loaded.model.save_pretrained(tmp_path / "cut")
    loaded.codec.tokenizer.save_pretrained(tmp_path / "cut")

    async def work(engine: EmbeddedEngine) -> list[Answer]:
        assert set((await engine.verify()).values()) <= {None}
        prompts = [kind(index) for kind in (forget_prompt, retain_prompt) for index in range(4)]
        return [await ask(engine, prompt, f"r{i}") for i, prompt in enumerate(prompts)]

    plain = run(EmbeddedOptions(model=str(served[0])), work)
    cut = run(EmbeddedOptions(model=str(tmp_path / "cut")), work)
    assert [a.text for a in cut] != [a.text for a in plain]  # positive control
    alone = run(EmbeddedOptions(model=str(served[0]), artifacts=(mask,)), work)
    assert [a.text for a in alone] == [a.text for a in cut]
    assert all(a.finish.neurons_shifted == 2 * 132 * a.finish.completion_tokens for a in alone)
    for artifacts in ((mask, served[1]), (served[1], mask)):
        both = run(EmbeddedOptions(model=str(served[0]), artifacts=artifacts), work)
        assert [a.finish.reason is FinishReason.ABSTAIN for a in both[:4]] == [True] * 4
        assert [a.text for a in both[4:]] == [a.text for a in alone[4:]]


def test_check_reads_without_generating(served: tuple[Path, Path, Path]) -> None:
    async def work(engine: EmbeddedEngine) -> tuple[Reading, Reading]:
        inside = await engine.check(forget_prompt(5), "a")
        outside = await engine.check(retain_prompt(5), "b")
        return inside[0].reading, outside[0].reading

    assert run(guarded(served), work) == (Reading.INSIDE, Reading.OUTSIDE)


def test_another_models_artifact_stops_the_start(served: tuple[Path, Path, Path], tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)

    async def nothing(_: EmbeddedEngine) -> None:
        pytest.fail("must not start")

    with pytest.raises(ArtifactMismatchError, match="weights_sha256"):
        run(EmbeddedOptions(model=str(other), artifacts=(served[1],)), nothing)


def test_another_tokenizer_stops_the_start(served: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Canaries are token ids and so would agree, while every text would become other ids."""
    other = tmp_path / "model"
    shutil.copytree(served[0], other)
    tokenizer = (other / "tokenizer.json").read_text()
    assert '"w10": 10' in tokenizer
    swapped = tokenizer.replace('"w10": 10', '"w10": 11').replace('"w11": 11', '"w11": 10')
    (other / "tokenizer.json").write_text(swapped)
    engine = EmbeddedEngine(EmbeddedOptions(model=str(other), artifacts=(served[1],)))
    with pytest.raises(ArtifactMismatchError, match="tokenizer_sha256"):
        asyncio.run(engine.start())


def test_an_artifact_without_canaries_is_refused(served: tuple[Path, Path, Path], tmp_path: Path) -> None:
    loaded = load_model(served[0], "cpu")
    folder = write_guard(tmp_path / "bare", loaded, ksd_guard(loaded), "ksd")
    artifact = read_artifact(folder)
    quiet = tuple(canary for canary in artifact.manifest.canaries if not canary.fires)
    write_artifact(folder, artifact.manifest.model_copy(update={"canaries": quiet}), artifact.tensors)
    with pytest.raises(ArtifactError, match="holds no canary on which its guard fires"):
        EmbeddedEngine(EmbeddedOptions(model=str(served[0]), artifacts=(folder,)))


def test_chat_prompts_pass_through_the_template(served: tuple[Path, Path, Path]) -> None:
    async def work(engine: EmbeddedEngine) -> None:
        assert engine.encode_chat([Message("user", "w10 w11")]) == (1, 10, 11, 5)
        with pytest.raises(PromptError, match="unknown role"):
            engine.encode_chat([Message("tool", "w10")])

    run(guarded(served), work)
