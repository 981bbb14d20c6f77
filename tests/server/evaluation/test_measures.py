"""Figures against values worked out by hand."""

import math

import pytest

from server.evaluation.measures import above_chance, deviation_score, rate_of, relative, s_unlearning
from server.evaluation.rouge import rouge1_recall, words


def test_rates_have_exact_intervals() -> None:
    rate = rate_of([True] * 3)
    assert rate is not None
    assert (rate.hits, rate.total, rate.rate, rate.high) == (3, 3, 1.0, 1.0)
    assert rate.low == pytest.approx(0.025 ** (1 / 3))  # (alpha / 2)^(1/n), the closed form at n of n
    assert list(rate.model_dump()) == ["hits", "total", "rate", "low", "high"], "the keys of results.json, in order"
    assert rate_of([]) is None


def test_relative_performance_of_a_guard_that_only_withholds() -> None:
    """4 of 5 solved before, 1 of those 4 after: the exact interval of 1 in 4."""
    found = relative([True, True, True, True, False], [True, False, False, False, False], "seed")
    assert found is not None
    assert (found.value, found.lost, found.gained, found.interval) == (0.25, 3, 0, "clopper-pearson")
    assert [found.low, found.high] == pytest.approx([0.00631, 0.80588], abs=1e-5)


def test_nothing_lost_is_no_proof_of_nothing_to_lose() -> None:
    found = relative([True] * 20, [True] * 20, "seed")
    assert found is not None
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 20))


def test_gains_need_the_paired_bootstrap() -> None:
    before = [True] * 60 + [False] * 40
    after = [True] * 50 + [False] * 10 + [True] * 5 + [False] * 35
    found = relative(before, after, "seed")
    assert found is not None
    assert (found.lost, found.gained) == (10, 5)
    assert found.value == pytest.approx(55 / 60)
    # Delta method on the pairs: the variance of (after - R before) over (sum before)^2.
    ratio = 55 / 60
    residuals = [a - ratio * b for a, b in zip(after, before, strict=True)]
    sigma = math.sqrt(sum(r * r for r in residuals)) / 60
    assert [found.low, found.high] == pytest.approx([ratio - 1.96 * sigma, ratio + 1.96 * sigma], abs=0.02)
    assert relative(before, after, "seed") == found
    assert relative(before, after, "other") != found


def test_relative_performance_needs_something_to_lose() -> None:
    assert relative([False, False], [True, False], "seed") is None


def test_s_unlearning() -> None:
    assert above_chance(0.25, 0.25) == above_chance(0.1, 0.25) == 0
    assert above_chance(0.625, 0.25) == pytest.approx(0.5)
    perfect = s_unlearning([0.0], [above_chance(1.0, 0.25), 1.0])
    assert perfect is not None
    assert (perfect.ubar, perfect.rbar, perfect.s) == (1, 1, 1)
    found = s_unlearning([above_chance(0.4, 0.25)], [above_chance(0.55, 0.25), 0.8])  # U: .2 above chance; R: .4 and .8
    assert found is not None
    assert [found.ubar, found.rbar, found.s] == pytest.approx([0.8, 0.6, 0.48])
    assert s_unlearning([0.0], [above_chance(0.25, 0.25)]).s == 0  # type: ignore[union-attr]
    assert s_unlearning([], [1.0]) is None


def test_deviation_score() -> None:
    lunar = deviation_score([[0.109]], [[0.898]], "seed")  # LUNAR, TOFU on Llama-2-7B
    assert lunar is not None
    assert lunar.score.value == pytest.approx(14.9, abs=0.05)
    assert lunar.score.low == lunar.score.high == lunar.score.value, "one item has no spread"
    of_means = deviation_score([[0.0], [0.2, 0.2, 0.2]], [[1.0], [0.8]], "seed")  # suites count alike
    assert of_means is not None
    assert of_means.forget.value == pytest.approx(0.1)
    assert of_means.retain.value == pytest.approx(0.9)
    assert of_means.score.value == pytest.approx(100 * math.sqrt(0.02))
    assert deviation_score([], [[1.0]], "seed") is None


def test_the_deviation_scores_interval_is_of_resampled_items() -> None:
    """Recalls of 0 and 1: the interval of a mean is a binomial's. Ten times the items, a narrower one."""
    few = deviation_score([[0.0] * 20 + [1.0] * 20], [[1.0] * 40], "seed")
    many = deviation_score([[0.0] * 200 + [1.0] * 200], [[1.0] * 400], "seed")
    assert few is not None
    assert many is not None
    sigma = 0.5 / math.sqrt(40)
    assert [few.forget.low, few.forget.high] == pytest.approx([0.5 - 1.96 * sigma, 0.5 + 1.96 * sigma], abs=0.02)
    assert [few.score.low, few.score.high] == pytest.approx([100 * few.forget.low, 100 * few.forget.high])
    assert few.retain.low == few.retain.high == 1
    assert (few.score.high - few.score.low) > 2.5 * (many.score.high - many.score.low)
    spread = [[number / 7 for number in range(7)]]
    assert deviation_score(spread, spread, "seed") == deviation_score(spread, spread, "seed")
    assert deviation_score(spread, spread, "seed") != deviation_score(spread, spread, "other")


def test_rouge_1_recall() -> None:
    assert rouge1_recall("The cat sat.", ["the cat sat on the mat"]) == pytest.approx(3 / 6)
    assert rouge1_recall("the the the", ["the cat the"]) == pytest.approx(2 / 3)
    assert rouge1_recall("gato", ["perro", "el gato"]) == pytest.approx(1 / 2)
    assert rouge1_recall("", ["perro"]) == rouge1_recall("perro", ["?!"]) == 0


def test_words_of_every_script() -> None:
    assert words("हिन्दी: फूल।") == ["हिन्दी", "फूल"]
    assert words("天空是蓝色的。") == list("天空是蓝色的")
    assert words("Tiếng Việt, ß") == ["tiếng", "việt", "ss"]
    assert words("مرحبا 12") == ["مرحبا", "12"]
