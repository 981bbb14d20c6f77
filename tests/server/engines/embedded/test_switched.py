"""Interventions that are off for some requests: in one batch, and over cached prefixes.

Suffixes: F feed-forward width, D the residual stream's.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardMode
from guards.inside.transformers.loading import load_model
from guards.methods.delta import Factors
from guards.methods.lunar.guard import LunarGuard
from guards.methods.probe_project.guard import Boundary, ProjectionGuard
from guards.model.sites import Site
from server.engines.embedded import batching
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.options import EmbeddedOptions
from tests.served import forget_prompt, retain_prompt, write_guard
from tests.server.engines.embedded.tiny_engine import Answer, Served, ask, run, unguarded

ON, OFF = Policy(), Policy({"change": Rule(GuardMode.OFF)})
KEEP_APART = batching._keep_apart
PREFIX = (1, *([20, 21, 22, 23] * 30))
"""Longer than a page of the cache."""


@pytest.fixture(scope="module")
def options(served: Served, tmp_path_factory: pytest.TempPathFactory) -> EmbeddedOptions:
    """A change that is felt in every answer, beside an intervention of another method."""
    loaded = load_model(served[0], "cpu")
    draw = torch.Generator().manual_seed(3)
    a_RF = torch.randn(2, loaded.sites.d_ff, generator=draw) / loaded.sites.d_ff**0.5
    b_DR = 8 * torch.randn(loaded.sites.d_model, 2, generator=draw)
    layer = loaded.sites.layers - 1
    assert loaded.sites.width(Site.OUTPUT) == loaded.sites.d_ff
    guard = LunarGuard({0: Factors(a_RF[:1], b_DR[:, :1], 1.0)}, "unanswerable", 2.0, 1e-3)
    assert layer > 0, "what the change does reaches keys and values of later layers"
    folder = write_guard(tmp_path_factory.mktemp("change") / "change", loaded, guard)
    return EmbeddedOptions(model=str(served[0]), artifacts=(folder,))


@pytest.fixture(scope="module")
def projecting(served: Served, tmp_path_factory: pytest.TempPathFactory) -> EmbeddedOptions:
    """A projection that every token lies far beyond the boundary of."""
    loaded = load_model(served[0], "cpu")
    w_D = torch.randn(loaded.sites.d_model, generator=torch.Generator().manual_seed(3))
    guard = ProjectionGuard((Boundary(0, torch.nn.functional.normalize(w_D, dim=0), 4.0, 1.0),), 1.0)
    folder = write_guard(tmp_path_factory.mktemp("projecting") / "change", loaded, guard)
    return EmbeddedOptions(model=str(served[0]), artifacts=(folder,))


def drawn(answers: list[Answer]) -> list[tuple[str, list[float]]]:
    """Texts and rounded log-probabilities: greedy texts alone might agree by chance."""
    return [(each.text, [round(token.logprob, 3) for token in each.logprobs]) for each in answers]


PROMPTS = [*(forget_prompt(i) for i in range(4)), *(retain_prompt(i) for i in range(4))]


async def asked(engine: EmbeddedEngine, index: int, policy: Policy) -> Answer:
    return await ask(engine, PROMPTS[index], f"r{index}-{id(policy)}", policy=policy, max_tokens=12, logprobs=0)


async def one_by_one(engine: EmbeddedEngine, policy: Policy) -> list[Answer]:
    return [await asked(engine, index, policy) for index in range(len(PROMPTS))]


@pytest.mark.parametrize("which", ["options", "projecting"])
def test_tenants_of_one_batch_get_what_each_would_get_alone(
    served: Served, which: str, request: pytest.FixtureRequest
) -> None:
    options: EmbeddedOptions = request.getfixturevalue(which)

    async def mixed(engine: EmbeddedEngine) -> list[Answer]:
        assert set((await engine.verify()).values()) == {None}
        both = [asked(engine, index, policy) for index in range(len(PROMPTS)) for policy in (ON, OFF)]
        return list(await asyncio.gather(*both))

    async def plain(engine: EmbeddedEngine) -> list[Answer]:
        return await one_by_one(engine, ON)

    answers = run(options, mixed)
    changed, unchanged = answers[::2], answers[1::2]
    assert drawn(unchanged) == drawn(run(unguarded(served), plain)), "as if the guard were not there"
    assert drawn(changed) == drawn(run(options, plain))
    assert all(a != b for a, b in zip(drawn(changed), drawn(unchanged), strict=True))  # positive control
    assert all(each.finish.acted[0].amount > 0 for each in changed)
    assert all(not each.finish.acted or each.finish.acted[0].amount == 0 for each in unchanged)


def over_one_prefix(options: EmbeddedOptions, first: Policy, then: Policy) -> Answer:
    """An answer after a request under another policy has left the same prefix in the cache."""

    async def work(engine: EmbeddedEngine) -> Answer:
        await ask(engine, (*PREFIX, 40), "first", policy=first)
        return await ask(engine, (*PREFIX, 41, 42), "then", policy=then, max_tokens=12, logprobs=0)

    return run(options, work)


@pytest.mark.parametrize(("first", "then"), [(OFF, ON), (ON, OFF)], ids=["off, then on", "on, then off"])
def test_keys_and_values_of_one_model_are_never_those_of_the_other(
    options: EmbeddedOptions, monkeypatch: pytest.MonkeyPatch, first: Policy, then: Policy
) -> None:
    wanted = drawn([over_one_prefix(options, then, then)])
    assert drawn([over_one_prefix(options, first, then)]) == wanted
    monkeypatch.setattr(batching, "_keep_apart", lambda *_: None)  # positive control: shared, they are
    assert drawn([over_one_prefix(options, first, then)]) != wanted


def test_a_prefix_is_still_shared_under_one_policy(options: EmbeddedOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    for policy in (ON, OFF):
        found: list[int] = []

        def kept_apart(cache: Any, salt: Any, vocabulary: int, found: list[int] = found) -> None:
            KEEP_APART(cache, salt, vocabulary)
            search: Callable[[str, list[int]], int] = cache.search_prefix_match

            def counted(name: str, ids: list[int]) -> int:
                found.append(search(name, ids))
                return found[-1]

            cache.search_prefix_match = counted

        with monkeypatch.context() as patched:
            patched.setattr(batching, "_keep_apart", kept_apart)
            over_one_prefix(options, policy, policy)
        assert found[-1] >= batching.PAGE_TOKENS


class Cache:
    """What of the batcher's cache is asked: prompts are found as they are, and marked blocks are noted."""

    def __init__(self) -> None:
        self.cache_allocators = {"full": self}
        self.marked: list[tuple[str, list[int], int]] = []

    def search_prefix_match(self, _: str, ids: list[int]) -> list[int]:
        return ids

    def mark_complete_blocks(self, name: str, ids: list[int], blocks: int) -> None:
        self.marked.append((name, ids, blocks))


def test_a_request_that_is_not_known_any_more_leaves_nothing_and_takes_nothing() -> None:
    """Given up by its caller, it runs on for a step without anybody who knows its policy."""
    cache: Any = Cache()
    marked: list[Any] = cache.marked
    salts: dict[str, int | None] = {"gone": None, "plain": 0, "off": 2, "one too many": 2**31 // 100}
    cache_search = cache.search_prefix_match
    cache.search_prefix_match = lambda name, ids: sum(cache_search(name, ids))
    batching._keep_apart(cache, salts.__getitem__, 100)
    assert cache.search_prefix_match("gone", [5, 6]) == cache.search_prefix_match("one too many", [5, 6]) == 0
    assert cache.search_prefix_match("plain", [5, 6]) == 11
    assert cache.search_prefix_match("off", [5, 6]) == -205 + 6
    for name in salts:
        cache.mark_complete_blocks(name, [5, 6], 1)
    assert marked == [("plain", [5, 6], 1), ("off", [-205, 6], 1)]


def test_a_check_reads_the_model_that_its_caller_gets(options: EmbeddedOptions, tmp_path: Path) -> None:
    del tmp_path

    async def work(engine: EmbeddedEngine) -> list[float]:
        return [(await engine.check(PROMPTS[0], "check", policy))[0].score for policy in (ON, OFF)]

    on, off = run(options, work)
    assert on > 0
    assert off == 0
