"""Pooled guards on the embedded engine: means go on over chunks, cached prefixes, answers and other requests."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from guards.core.verdict import Reading, Scope, Stage
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.pooled.guard import DiscriminantFitter, PooledGuard, mean_scores
from guards.model.sites import Place, Site
from server.engines.base import FinishReason
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.options import EmbeddedOptions
from tests.served import forget_prompt, retain_prompt, save_tiny_model, write_guard
from tests.server.engines.embedded.tiny_engine import Answer, ask, run, watching

LAYERS = (1, 2)
NAME = "mean-tens"


def means(loaded: LoadedModel, prompts: list[tuple[int, ...]]) -> dict[int, torch.Tensor]:
    """Mean key vectors [prompts, d_ff] by layer."""
    kept: dict[int, list[torch.Tensor]] = {layer: [] for layer in LAYERS}
    handles = [
        loaded.sites.tap(Place(layer, Site.KEY)).module.register_forward_pre_hook(
            lambda _, args, layer=layer: kept[layer].append(args[0][0].mean(dim=0))
        )
        for layer in LAYERS
    ]
    with torch.no_grad():
        for prompt in prompts:
            loaded.model(torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    return {layer: torch.stack(rows) for layer, rows in kept.items()}


def guard_of(loaded: LoadedModel, scope: Scope = Scope.BOTH) -> PooledGuard:
    forget = means(loaded, [forget_prompt(i) for i in range(100, 160)])
    retain = means(loaded, [retain_prompt(i) for i in range(100, 160)])
    terms = DiscriminantFitter(forget, retain).finish(LAYERS)
    tau = (float(mean_scores(terms, forget).max()) + float(mean_scores(terms, retain).min())) / 2
    return PooledGuard(terms, max(tau, 0.1), scope)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Model folder and artifact."""
    folder = tmp_path_factory.mktemp("served")
    loaded = load_model(save_tiny_model(folder / "model"), "cpu")
    return folder / "model", write_guard(folder / NAME, loaded, guard_of(loaded))


def options(served: tuple[Path, Path], **changes: int) -> EmbeddedOptions:
    return EmbeddedOptions(model=str(served[0]), artifacts=served[1:], **changes)


Scores = list[tuple[Reading, float]]


def scores(answers: list[Answer]) -> Scores:
    """Each prompt's reading and score."""
    return [(a.finish.prompt_scores[0].reading, a.finish.prompt_scores[0].score) for a in answers]


def same(got: Scores, wanted: Scores) -> None:
    """Up to the rounding of other batches."""
    assert [reading for reading, _ in got] == [reading for reading, _ in wanted]
    assert [score for _, score in got] == pytest.approx([score for _, score in wanted], rel=1e-3, abs=1e-4)


def expected(served: tuple[Path, Path], prompts: list[tuple[int, ...]]) -> Scores:
    """By plain forward passes of whole prompts, without an engine."""
    loaded = load_model(served[0], "cpu")
    guard = guard_of(loaded)
    found = mean_scores(guard.terms, means(loaded, prompts)).tolist()
    return [(Reading.INSIDE if score <= guard.tau else Reading.OUTSIDE, score) for score in found]


PROMPTS = [forget_prompt(i) if i % 2 else retain_prompt(i) for i in range(16)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_batch_tokens": 8, "max_running": 4},
        {"kv_cache_tokens": 192, "max_running": 16},
        {"max_running": 1},
    ],
    ids=["all at once", "prompts in chunks", "preempted for want of cache", "one at a time"],
)
def test_scores_do_not_depend_on_scheduling(served: tuple[Path, Path], changes: dict[str, int]) -> None:
    async def together(engine: EmbeddedEngine) -> list[Answer]:
        assert set((await engine.verify()).values()) == {None}
        asked = (ask(engine, prompt, f"r{i}", max_tokens=24) for i, prompt in enumerate(PROMPTS))
        return list(await asyncio.gather(*asked))

    wanted = expected(served, PROMPTS)
    assert {reading for reading, _ in wanted} == {Reading.INSIDE, Reading.OUTSIDE}
    same(scores(run(options(served, **changes), together)), wanted)


def test_a_cached_prefix_goes_on_from_its_sums(served: tuple[Path, Path]) -> None:
    """Longer than a page of the cache, so that a later prompt finds it there."""
    shared = (1, *([20, 21, 22, 23] * 30))
    prompts = [(*shared, *forget_prompt(0)[1:]), (*shared, *forget_prompt(1)[1:]), (*shared, 40)]

    async def twice(engine: EmbeddedEngine) -> list[Answer]:
        asked = [*prompts, *prompts]
        return [await ask(engine, prompt, f"r{i}", max_tokens=1) for i, prompt in enumerate(asked)]

    same(scores(run(options(served), twice)), expected(served, prompts) * 2)


def test_the_mean_goes_on_over_what_the_model_writes(served: tuple[Path, Path], tmp_path: Path) -> None:
    """The score at a written token is that of a prompt which holds prompt and answer up to it."""
    loaded = load_model(served[0], "cpu")
    eager = replace(guard_of(loaded, Scope.GENERATION), tau=50.0)
    folder = write_guard(tmp_path / NAME, loaded, eager)
    prompt = retain_prompt(3)

    async def work(engine: EmbeddedEngine) -> tuple[Answer, Answer]:
        watched = await ask(engine, prompt, "watched", max_tokens=6, policy=watching(engine))
        return watched, await ask(engine, prompt, "stopped", max_tokens=6)

    watched, stopped = run(EmbeddedOptions(model=str(served[0]), artifacts=(folder,)), work)
    (hit,) = watched.finish.hits
    assert hit.score.stage is Stage.GENERATION
    assert stopped.finish.reason is FinishReason.ABSTAIN
    tokens = tuple(int(word[1:]) for word in watched.text.split())
    assert len(tokens) > 1
    written = hit.score.position + 1 - len(prompt)
    assert written >= 1
    (wanted,) = expected(served, [(*prompt, *tokens[:written])])
    assert hit.score.score == pytest.approx(wanted[1], rel=1e-3, abs=1e-4)
