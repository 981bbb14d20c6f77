"""What benchmarks count, on made-up measurements."""

import math
from dataclasses import replace

import pytest

from benchmarks.overhead import DECODE, interval, prompts, summarise
from benchmarks.parity import MARGIN, Answer, compare, compare_answers
from guards.core.verdict import Reading, Stage
from server.engines.base import FinishReason, GuardScore

INSIDE = GuardScore("ksd", "m", "ksd", Reading.INSIDE, 4.0, 5.0, (1,), 7, Stage.PROMPT, "0" * 64)
OUTSIDE = replace(INSIDE, reading=Reading.OUTSIDE, score=6.0)
EDGE_IN, EDGE_OUT = replace(INSIDE, score=5.0 * (1 - MARGIN / 9)), replace(OUTSIDE, score=5.0 * (1 + MARGIN / 9))
ADJUSTED = GuardScore("na", "m", "neuron-adjust", Reading.OUTSIDE, 40.0, None, (1,), 7, Stage.PROMPT, "0" * 64)


def test_a_verdict_that_differs_away_from_tau_is_a_disagreement() -> None:
    (row,) = compare([{"ksd": INSIDE}, {"ksd": OUTSIDE}], [{"ksd": OUTSIDE}, {"ksd": OUTSIDE}], MARGIN)
    assert (row["disagree"], row["within_margin"], row["flipped"], row["fires"]) == (1, 0, 0, 1)
    assert row["max_relative_score_difference"] == pytest.approx(2 / 5), "of tau, which is above the score"


def test_a_score_near_zero_differs_by_shares_of_tau() -> None:
    near = replace(INSIDE, score=1e-9, tau=0.5)
    (row,) = compare([{"ksd": near}], [{"ksd": replace(near, score=-1e-6)}], MARGIN)
    assert row["disagree"] == 0
    assert row["max_relative_score_difference"] == pytest.approx(2e-6, rel=1e-2)


def test_a_verdict_that_differs_at_tau_is_counted_apart() -> None:
    (row,) = compare([{"ksd": EDGE_IN}, {"ksd": EDGE_OUT}], [{"ksd": EDGE_OUT}, {"ksd": EDGE_OUT}], MARGIN)
    assert (row["disagree"], row["within_margin"], row["flipped"]) == (0, 2, 1)


def test_a_far_score_is_no_margin_for_the_reference() -> None:
    # The margin is about the reference: a live score at tau does not excuse a reference far from it.
    (row,) = compare([{"ksd": OUTSIDE}], [{"ksd": EDGE_IN}], MARGIN)
    assert row["disagree"] == 1


@pytest.mark.parametrize(("moved", "disagree"), [(40.0, 0), (42.0, 0), (43.0, 1), (math.nan, 1)])
def test_neurons_moved_may_differ_by_a_canarys_slack(moved: float, disagree: int) -> None:
    (row,) = compare([{"na": ADJUSTED}], [{"na": replace(ADJUSTED, score=moved)}], MARGIN)
    assert row["disagree"] == disagree


def test_answers_are_compared_where_their_text_is_the_same() -> None:
    hit = Answer(FinishReason.STOP, "a", {"ksd": (7, 4.0)}, 0)
    found = [replace(hit), replace(hit, hits={}), replace(hit, hits={"ksd": (8, 4.0)}), replace(hit, text="b", hits={})]
    (row,) = compare_answers([hit] * 4, found, ["ksd"])
    assert (row["answers"], row["other_text"], row["fires"], row["disagree"]) == (4, 1, 3, 2)


def test_the_overhead_is_a_median_of_pairs() -> None:
    row = summarise(DECODE, [1.0, 2.0, 4.0], [2.0, 4.0, 4.0])
    assert row["ratio"] == 0.5
    assert row["low"] == 0.5
    assert row["high"] == 1.0
    assert row["plain_tokens_per_second"] == DECODE.prompts * DECODE.drawn / 2
    assert interval([1.0]) == {"ratio": 1.0, "low": 1.0, "high": 1.0}


def test_prompts_are_the_same_for_a_seed_only() -> None:
    assert prompts(DECODE, 1) == prompts(DECODE, 1) != prompts(DECODE, 2)
