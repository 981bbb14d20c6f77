"""Alpha moves towards what is rewarded, and would run away were it in its own reward."""

import math
from collections.abc import Callable

import pytest

from guards.methods.rmu.alpha import DEVIATION, AlphaPolicy


def learned(reward: Callable[[float], float], *, start: float = 1.0, steps: int = 1500, rate: float = 0.02) -> float:
    """Alpha after so many rewards."""
    policy = AlphaPolicy(math.log(start))
    for step in range(steps):
        alpha = policy.draw(seed=0, step=step)
        policy = policy.learn(alpha, reward(alpha), rate)
    return policy.alpha


def nearest_to(best: float) -> Callable[[float], float]:
    return lambda alpha: -(math.log(alpha / best) ** 2)


@pytest.mark.parametrize("best", [0.05, 20.0])
def test_alpha_finds_what_is_rewarded_from_either_side(best: float) -> None:
    assert learned(nearest_to(best)) == pytest.approx(best, rel=0.5)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_rewards_changes_nothing(scale: float) -> None:
    assert learned(lambda alpha: scale * nearest_to(20.0)(alpha), steps=300) == pytest.approx(
        learned(nearest_to(20.0), steps=300)
    )


def test_one_better_reward_moves_alpha_towards_its_draw_and_a_worse_one_away() -> None:
    policy = AlphaPolicy(0.0).learn(1.0, reward=1.0, rate=0.01)
    assert policy.mean == 0, "the first reward says what is usual"
    assert policy.learn(2.0, reward=3.0, rate=0.01).mean > 0
    assert policy.learn(2.0, reward=-3.0, rate=0.01).mean < 0
    assert policy.learn(0.5, reward=3.0, rate=0.01).mean < 0


def test_an_update_is_the_formula() -> None:
    """Of REINFORCE for the mean of a Gaussian: advantage times (x - mean) / deviation^2."""
    first = AlphaPolicy(0.3).learn(1.2, reward=2.0, rate=0.01)
    second = first.learn(1.7, reward=2.5, rate=0.01)
    seen = [0.9 * 0.1, 0.1]
    usual = (seen[0] * 2.0 + seen[1] * 2.5) / sum(seen)
    spread = math.sqrt((seen[0] * 4.0 + seen[1] * 6.25) / sum(seen) - usual**2)
    advantage = (2.5 - 2.0) / spread
    assert second.mean == pytest.approx(0.3 + 0.01 * advantage * (math.log(1.7) - 0.3) / DEVIATION**2)


def test_with_alpha_in_its_own_reward_it_would_run_to_nothing() -> None:
    """The trap: losses that no alpha changes, and a reward that weighs them by the alpha that was drawn."""
    forget, retain = 0.5, 0.5
    assert learned(lambda alpha: -(forget + alpha * retain)) < 0.01
    assert learned(lambda _: -(forget + 1.0 * retain)) == pytest.approx(1.0), "fixed weights: nothing to learn"


def test_draws_are_a_matter_of_seed_and_step() -> None:
    policy = AlphaPolicy(0.0)
    assert policy.draw(1, 5) == policy.draw(1, 5)
    assert len({policy.draw(seed, step) for seed in (1, 2) for step in (5, 6)}) == 4
