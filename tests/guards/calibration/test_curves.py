"""Figures at low false-positive rates, against a direct numeric computation."""

import math

import pytest
import torch

from guards.calibration.curves import HIGHEST, LOWEST, enough, log_auroc, recall_at


def points(forget: list[float], retain: list[float]) -> list[tuple[float, float]]:
    """False-positive rate and recall of every threshold that is a forget score."""
    return [
        (
            sum(each <= threshold for each in retain) / len(retain),
            sum(each <= threshold for each in forget) / len(forget),
        )
        for threshold in forget
    ]


def caught(found: list[tuple[float, float]], rate: float) -> float:
    """The most that any threshold catches with at most that share of false positives."""
    return max((recall for wrong, recall in found if wrong <= rate + 1e-12), default=0.0)


@pytest.mark.parametrize(("count", "rounded"), [(1000, None), (1234, None), (2000, 1), (1500, 0)])
def test_log_auroc_is_the_area_over_the_logarithm_of_the_rate(count: int, rounded: int | None) -> None:
    draw = torch.Generator().manual_seed(count)
    forget_E, retain_E = torch.randn(60, generator=draw) - 1.5, torch.randn(count, generator=draw)
    if rounded is not None:  # ties
        forget_E, retain_E = (each_E.round(decimals=rounded) for each_E in (forget_E, retain_E))
    found, count = points(forget_E.tolist(), retain_E.tolist()), 2000
    width = math.log10(HIGHEST / LOWEST) / count
    middles = [10 ** (math.log10(LOWEST) + (index + 0.5) * width) for index in range(count)]
    wanted = sum(caught(found, middle) for middle in middles) / count
    assert log_auroc(forget_E, retain_E) == pytest.approx(wanted, abs=2e-3)
    for rate in (0.001, 0.005, 0.01):
        assert recall_at(forget_E, retain_E, rate) == pytest.approx(caught(found, rate), abs=1e-6)


def test_a_perfect_detector_has_all_of_the_area_and_a_useless_one_none() -> None:
    low_E, high_E = torch.zeros(10), torch.ones(1000)
    assert log_auroc(low_E, high_E) == pytest.approx(1)
    assert log_auroc(high_E, torch.zeros(1000)) == 0
    assert log_auroc(torch.ones(10), high_E) == 0, "a tie is not told apart"


def test_too_few_retained_prompts_show_no_low_rate() -> None:
    forget_E = torch.zeros(10)
    assert [enough(999, 0.001), enough(1000, 0.001), enough(200, 0.005)] == [False, True, True]
    assert log_auroc(forget_E, torch.ones(999)) is None
    assert [recall_at(forget_E, torch.ones(300), rate) for rate in (0.001, 0.005, 0.01)] == [None, 1.0, 1.0]


def test_one_retained_prompt_may_fire_for_each_that_the_rate_allows() -> None:
    retain_E = torch.cat([torch.tensor([0.5]), torch.full((999,), 2.0)])
    assert recall_at(torch.tensor([0.4, 1.0, 3.0]), retain_E, 0.001) == pytest.approx(2 / 3)
    assert recall_at(torch.tensor([0.4, 1.0, 3.0]), torch.cat([retain_E, retain_E]), 0.0005) == pytest.approx(1 / 3)
