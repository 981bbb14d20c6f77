"""Guards over spans where blocks are few, shared and given to others; `test_sharding` has the rest."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from guards.core.verdict import GuardMode, Reading
from server.engines.events import FinishReason
from server.engines.request import EngineRequest, Sampling
from tests.server.engines.vllm.live import Live, embedded, greedy, live, on_vllm
from tests.server.engines.vllm.test_sharding import cache_hits, long_prompts, preemptions, same, verdicts

Wanted = tuple[list[tuple[int, ...]], list[dict[str, tuple[Reading, float]]]]
SHADOW = dict.fromkeys(("ksd-spans", "ksd-en"), GuardMode.SHADOW)


@pytest.fixture(scope="module")
def wanted(spans: str, cube: str) -> Wanted:
    """What the embedded engine says, one prompt at a time: no pass holds two sequences."""
    with live(embedded(spans, cube)) as running:
        ids = long_prompts(running)
        alone = [verdicts(running, [each])[0] for each in ids]
    assert {each["ksd-spans"][0] for each in alone} == {Reading.INSIDE, Reading.OUTSIDE}
    return ids, alone


@pytest.fixture(scope="module")
def few_blocks(spans: str, cube: str) -> Iterator[Live]:
    """vLLM with a cache that does not hold several long answers."""
    cache = ("--block-size", "32", "--num-gpu-blocks-override", "12", "--max-model-len", "256")
    with live(on_vllm(spans, cube, flags=("--enforce-eager", *cache))) as running:
        yield running


def test_a_long_answer_is_judged_alike_on_both_engines(few_blocks: Live, spans: str, cube: str, wanted: Wanted) -> None:
    """Each position of an answer is judged by all before it: told for a guard that only watches."""
    ids, long = wanted[0][::3], greedy(max_tokens=48)
    with live(embedded(spans, cube)) as running:
        there = _hits(running, ids, long)
    assert _hits(few_blocks, ids, long) == there
    assert any(there)


def test_preempted_answers_keep_their_states(few_blocks: Live, wanted: Wanted) -> None:
    """Blocks are given to others, and the answer set aside computes its own again."""
    ids, long = wanted[0][::4], greedy(max_tokens=120, ignore_eos=True)
    alone = [_hits(few_blocks, [prompt], long)[0] for prompt in ids]
    before = preemptions(few_blocks)
    together = _hits(few_blocks, ids, long)
    assert preemptions(few_blocks) > before, "nothing was preempted, so nothing is shown"
    assert alone == together


def test_canaries_are_computed_anew(few_blocks: Live, wanted: Wanted) -> None:
    """Where everybody else's prompts are taken from the cache: what a guard read once is no proof.

    Before another engine starts in this process, whose counters take the place of this one's.
    """
    prompt = wanted[0][0]

    def hits() -> float:
        verdicts(few_blocks, [prompt[:8]])  # vLLM counts a step when the next one is done; this one has no whole block
        return cache_hits(few_blocks)

    (found,) = verdicts(few_blocks, [prompt])
    before = hits()
    read = few_blocks.wait(few_blocks.engine.read(prompt, "canary"))  # type: ignore[attr-defined]
    assert hits() == before
    assert {name: reading for name, (reading, _) in read.items()} == {name: each[0] for name, each in found.items()}
    verdicts(few_blocks, [prompt])
    assert hits() > before, "positive control"


def test_a_prefix_that_one_step_both_computes_and_shares(spans: str, wanted: Wanted) -> None:
    """Blocks are shared as soon as they are scheduled, and these were other prompts' before."""
    old = wanted[0]
    new = [a + b for a, b in zip(old[::2], old[1::2], strict=True)]
    asked = [each for first in new for each in (first, first, first + old[0], first)]
    with live(embedded(spans)) as running:
        there = [verdicts(running, [ids])[0] for ids in asked]
    cache = ("--block-size", "32", "--num-gpu-blocks-override", "60", "--max-model-len", "512")
    with live(on_vllm(spans, flags=("--enforce-eager", *cache))) as running:
        verdicts(running, old)
        verdicts(running, old[::-1])
        hits = cache_hits(running)
        for first in range(0, len(asked), 4):  # while another answer is written, so that one step takes all four
            four = range(first, first + 4)
            busy, *got = running.wait(_beside_an_answer(running, old[0], [asked[index] for index in four]))
            assert busy, "nothing was written meanwhile"
            same([{"ksd-spans": each["ksd-spans"]} for each in got], [there[index] for index in four])
        assert cache_hits(running) > hits, "nothing was shared, so nothing is shown"


async def _beside_an_answer(running: Live, written: tuple[int, ...], asked: Sequence[tuple[int, ...]]) -> list[Any]:
    """Whether tokens were written while the others were read, and their readings."""
    engine, started, tokens = running.engine, asyncio.Event(), 0

    async def write() -> None:
        nonlocal tokens
        request = EngineRequest(
            f"written-{asked[0]}", written, greedy(max_tokens=60, ignore_eos=True), running.policy(SHADOW)
        )
        async for _ in engine.submit(request):
            tokens += 1
            started.set()

    task = asyncio.create_task(write())
    await started.wait()
    before = tokens
    found = await asyncio.gather(*(engine.check(ids, f"read-{i}-{ids}") for i, ids in enumerate(asked)))
    busy = tokens > before
    await task
    return [busy, *({score.guard: (score.reading, score.score) for score in each} for each in found)]


def _hits(running: Live, ids: Sequence[tuple[int, ...]], sampling: Sampling) -> list[list[tuple[str, int]]]:
    answers = running.draw(ids, sampling, [SHADOW] * len(ids))
    assert all(answer.finish.verified for answer in answers)
    assert not sampling.ignore_eos or all(answer.finish.reason is FinishReason.LENGTH for answer in answers)
    return [[(hit.score.guard, hit.score.position) for hit in each.finish.hits] for each in answers]
