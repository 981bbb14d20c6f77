"""What parity counts: each prompt by the tau of the part that decided it."""

import pytest

from benchmarks.parity import MARGIN, compare
from guards.core.verdict import Reading, Stage
from server.engines.events import GuardScore


def score(value: float, tau: float, part: str, reading: Reading = Reading.OUTSIDE) -> GuardScore:
    return GuardScore("a", "sums", "ksd", reading, value, tau, (1,), 0, Stage.PROMPT, "digest", part)


def test_each_prompt_has_the_tau_of_its_own_part() -> None:
    prompts = [{"a": score(0.5, 0.4, "mean")}, {"a": score(0.3, 0.2, "stretch")}]
    (row,) = compare(prompts, prompts, MARGIN, {})
    assert (row["fires"], row["disagree"], row["within_margin"], row["max_relative_score_difference"]) == (0, 0, 0, 0)


@pytest.mark.parametrize(("value", "flipped", "disagree"), [(0.4, 0, 1), (0.20001, 1, 0)])
def test_a_verdict_differs_unless_the_score_lies_at_its_own_tau(value: float, flipped: int, disagree: int) -> None:
    first = score(0.6, 0.4, "mean")
    wanted, live = score(value, 0.2, "stretch"), score(value, 0.2, "stretch", Reading.INSIDE)
    (row,) = compare([{"a": first}, {"a": wanted}], [{"a": first}, {"a": live}], MARGIN, {})
    assert (row["flipped"], row["disagree"], row["fires"]) == (flipped, disagree, 0)


def test_where_engines_name_another_part_scores_over_taus_are_compared() -> None:
    wanted, live = score(0.3, 0.2, "stretch"), score(0.603, 0.4, "mean")
    (row,) = compare([{"a": wanted}], [{"a": live}], MARGIN, {})
    assert row["max_relative_score_difference"] == pytest.approx(0.0075)
