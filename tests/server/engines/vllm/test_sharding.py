"""The same verdicts however vLLM splits, cuts, caches and repeats the work."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from guards.core.verdict import GuardMode, Reading
from server.engines.events import FinishReason
from tests.server.engines.vllm.live import DEMO, Live, embedded, greedy, live, on_vllm

SHIPPED = ("ksd-mathematics", "ksd-code", "ksd-zh")
DETECTORS = (*SHIPPED, "ksd-en", "ksd-spans", "probe-mathematics")
"""Shipped ones, the cubes that `cube` made, and those of several layers that `spans` and `probe` made."""
CHUNKED = ("--enforce-eager", "--max-num-batched-tokens", "16", "--max-num-seqs", "8")
STAGES = ("--pipeline-parallel-size", "2")
VARIANTS: dict[str, Sequence[str]] = {
    "compiled": (),
    "two tensor-parallel ranks": ("--tensor-parallel-size", "2"),
    "two tensor-parallel ranks, uncompiled": ("--tensor-parallel-size", "2", "--enforce-eager"),
    "two pipeline stages, traced": (*STAGES, "-cc.backend=eager"),
    "two pipeline stages, uncompiled": (*STAGES, "--enforce-eager"),
    "chunks of 16 tokens": CHUNKED,
}


def prompts(running: Live, per_skill: int = 12) -> list[tuple[int, ...]]:
    """Held-out prompts of every skill of the demo, in the chat frame."""
    found = []
    for path in sorted((DEMO / "data").glob("*.test.jsonl")):
        lines = path.read_text().splitlines()[:per_skill]
        found += [running.chat(json.loads(line)["prompt"]) for line in lines]
    return found


def long_prompts(running: Live) -> list[tuple[int, ...]]:
    """Three of one skill each, the first again at the end: long enough to fill blocks of a prefix cache."""
    ids = prompts(running, per_skill=8)
    return [a + b + a for a, b in zip(ids[::2], ids[1::2], strict=True)]


def verdicts(running: Live, ids: Sequence[tuple[int, ...]]) -> list[dict[str, tuple[Reading, float]]]:
    return [{name: (s.reading, s.score) for name, s in found.items()} for found in running.scores(ids)]


def same(got: list[dict[str, tuple[Reading, float]]], wanted: list[dict[str, tuple[Reading, float]]]) -> None:
    for here, there in zip(got, wanted, strict=True):
        assert here.keys() == there.keys()
        for name, (reading, score) in here.items():
            assert reading is there[name][0], name
            assert score == pytest.approx(there[name][1], rel=1e-3, abs=1e-3)


Ids = list[tuple[int, ...]]
Verdicts = list[dict[str, tuple[Reading, float]]]


@dataclass(frozen=True)
class Wanted:
    """What the embedded engine says."""

    ids: Ids
    found: Verdicts
    long_ids: Ids
    long_found: Verdicts


@pytest.fixture(scope="module")
def detecting(cube: str, spans: str, probe: str) -> tuple[str, ...]:
    """All detectors."""
    return (*SHIPPED, cube, spans, probe)


@pytest.fixture(scope="module")
def guards(detecting: tuple[str, ...], mask: str, projecting: str) -> tuple[str, ...]:
    """Those, and interventions that are given last but act before them: pruning, on the key vectors that they score,
    and projections of the residual stream.

    They move scores that were fitted without them, those of canaries too: readings and scores are compared here.
    """
    return (*detecting, mask, projecting)


def moved(found: Verdicts, unchanged: Verdicts) -> float:
    """Share of detectors' scores that an intervention changed."""
    pairs = zip(found, unchanged, strict=True)
    scores = [(each[name][1], before[name][1]) for each, before in pairs for name in DETECTORS]
    return sum(score != pytest.approx(unmoved, rel=1e-2) for score, unmoved in scores) / len(scores)


@pytest.fixture(scope="module")
def wanted(detecting: tuple[str, ...], mask: str, projecting: str, guards: tuple[str, ...]) -> Wanted:
    """Long prompts one at a time: no pass of those holds two sequences."""
    with live(embedded(*detecting)) as running:
        ids = prompts(running)
        unchanged = verdicts(running, ids)
    for name, least in ((mask, 0.25), (projecting, 0.0)):  # one by one, or either might hide behind the other
        with live(embedded(*detecting, name), verified=False) as running:
            share = moved(verdicts(running, ids), unchanged)
        assert share > least, f"positive control: what {name} does shows in what detectors score"
    with live(embedded(*guards), verified=False) as running:
        found = verdicts(running, ids)
        long_ids = long_prompts(running)
        alone = [verdicts(running, [each])[0] for each in long_ids]
        same(verdicts(running, long_ids), alone)  # all at once, out of a warm prefix cache
    for each in (found, alone):
        for name in ("ksd-spans", "probe-mathematics"):
            assert {one[name][0] for one in each} == {Reading.INSIDE, Reading.OUTSIDE}
    assert {one[name][0] for one in found for name in DETECTORS} == {Reading.INSIDE, Reading.OUTSIDE}
    assert 0 < sum(each["project-facts"][1] > 0 for each in found) < len(found), "it acts on some, and not on others"
    return Wanted(ids, found, long_ids, alone)


@pytest.fixture(scope="module", params=VARIANTS)
def running(request: pytest.FixtureRequest, guards: tuple[str, ...]) -> Iterator[Live]:
    """vLLM in one of its variants; the tests that take it follow each other, since each start takes long."""
    flags = (*VARIANTS[request.param], "--block-size", "32")
    with live(on_vllm(*guards, flags=flags), verified=False) as running:
        yield running


def test_verdicts_and_counts_are_the_same(running: Live, wanted: Wanted) -> None:
    same(verdicts(running, wanted.ids), wanted.found)
    same(verdicts(running, wanted.ids), wanted.found)  # now out of a warm prefix cache


def test_states_go_on_out_of_a_prefix_cache(running: Live, wanted: Wanted) -> None:
    same(verdicts(running, wanted.long_ids), wanted.long_found)
    before = cache_hits(running)
    same(verdicts(running, wanted.long_ids), wanted.long_found)
    assert cache_hits(running) > before, "nothing was cached, so nothing is shown"


def test_requests_of_one_batch_have_a_projected_stream_or_their_own(running: Live, wanted: Wanted) -> None:
    ids, few = wanted.ids[::3], greedy(max_tokens=4)
    modes: tuple[dict[str, GuardMode], ...] = ({}, {"project-facts": GuardMode.OFF})
    on, off = ([each.text for each in running.draw(ids, few, [of] * len(ids))] for of in modes)
    mixed = running.draw([*ids, *ids], few, [of for of in modes for _ in ids])
    assert [each.text for each in mixed] == [*on, *off]
    assert on != off, "positive control"


SWITCHED = {"lunar-facts": GuardMode.OFF}


def switched(running: Live) -> tuple[list[str], list[str]]:
    """Answers to long prompts with the change and without, out of a cache that holds both, and in one batch."""
    ids, short = long_prompts(running)[:6], greedy(max_tokens=16)
    on, off = (
        [each.text for each in running.draw(ids, short, [modes] * len(ids))]
        for modes in (dict[str, GuardMode](), SWITCHED)
    )
    mixed = running.draw([*ids, *ids], short, [{}] * len(ids) + [SWITCHED] * len(ids))
    assert [each.text for each in mixed] == [*on, *off], "each gets what it would get alone"
    return on, off


@pytest.mark.parametrize("flags", [("--tensor-parallel-size", "2"), (*STAGES, "-cc.backend=eager")])
def test_interventions_do_the_same(flags: Sequence[str], mask: str, change: str, trained: str) -> None:
    """Neuron Adjust, pruning and deltas together: answers, what each did of them, and answers without one delta."""
    answers, switches = [], []
    for make in (
        embedded("na-mathematics", change, trained),
        embedded("na-mathematics", mask, change, trained),
        on_vllm("na-mathematics", mask, change, trained, flags=(*flags, "--block-size", "32")),
    ):
        with live(make) as running:
            ids = prompts(running, per_skill=3)
            answers.append(
                [(a.text, {each.guard: each.amount for each in a.finish.acted}) for a in running.draw(ids, greedy())]
            )
            switches.append(switched(running))
    unpruned, wanted, got = answers
    for (text, moved), (other, also_moved) in zip(wanted, got, strict=True):
        assert text == other
        for delta in ("lunar-facts", "rmu-code"):
            assert moved[delta] > 0
            assert moved.pop(delta) == pytest.approx(also_moved.pop(delta), rel=1e-3)
        assert moved == pytest.approx(also_moved, abs=3)
    assert all(moved for _, moved in wanted)
    assert [text for text, _ in wanted] != [text for text, _ in unpruned], "positive control: pruning changes answers"
    assert switches[1] == switches[2]
    on, off = switches[1]
    assert on != off, "positive control: the delta changes answers"


def test_preempted_answers_are_judged_as_others(cube: str) -> None:
    """A cache of a few blocks: answers are set aside and computed again, from prompt and what was drawn."""
    cache = ("--block-size", "32", "--num-gpu-blocks-override", "12", "--max-model-len", "256")
    flags = ("--enforce-eager", "--no-enable-prefix-caching", *cache)
    shadow = dict.fromkeys(("ksd-mathematics", "ksd-en"), GuardMode.SHADOW)
    long = greedy(max_tokens=120, ignore_eos=True)
    with live(embedded("ksd-mathematics", cube)) as running:
        ids = prompts(running, per_skill=1)
    with live(on_vllm("ksd-mathematics", cube, flags=flags)) as running:
        alone = [running.draw([prompt], long, [shadow])[0] for prompt in ids]
        before = preemptions(running)
        together = running.draw(ids, long, [shadow] * len(ids))
        assert preemptions(running) > before, "nothing was preempted, so nothing is shown"
    for one, other in zip(alone, together, strict=True):
        assert one.finish.reason is other.finish.reason is FinishReason.LENGTH
        assert other.finish.verified
        assert one.text == other.text
        hits = [[(hit.score.guard, hit.score.position) for hit in each.finish.hits] for each in (one, other)]
        assert hits[0] == hits[1]


def preemptions(running: Live) -> float:
    """How many answers vLLM set aside so far."""
    return counted(running, "vllm:num_preemptions_total")


def cache_hits(running: Live) -> float:
    """Prompt tokens that vLLM found in its prefix cache so far."""
    return counted(running, "vllm:prefix_cache_hits_total")


def counted(running: Live, name: str) -> float:
    """What vLLM counted so far."""
    return sum(
        float(sample.value) for metric in running.engine.metrics() for sample in metric.samples if sample.name == name
    )
