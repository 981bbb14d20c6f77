"""The weight of the retain loss: fixed, or learned by REINFORCE.

``log alpha`` is drawn from a Gaussian of fixed deviation, whose mean is learned: a step is made with the alpha drawn,
and the reward is how much that step lowered ``L_forget + w L_retain`` on its own batch, w fixed. Were the drawn alpha
in the reward, a smaller one would earn more whatever it did, and alpha would run to 0.
"""

import math
from dataclasses import dataclass

import torch

from guards.methods.rmu.drawing import seeded

DEVIATION = 0.5
"""Of log alpha's draws: alphas within a factor of 1.6 are tried two times of three."""
REWARD_MEMORY = 0.9
"""How much of what is known of rewards each further one leaves."""


@dataclass(frozen=True)
class AlphaPolicy:
    """The learned distribution of alpha. `mean` is that of log alpha; rewards are judged by their running moments."""

    mean: float
    rewards: float = 0.0
    squares: float = 0.0
    seen: float = 0.0

    @property
    def alpha(self) -> float:
        """The middle of what is drawn."""
        return math.exp(self.mean)

    def draw(self, seed: int, step: int) -> float:
        """An alpha for a step: a matter of the seed and the step alone, so that a resumed training draws the same."""
        draw = torch.randn((), generator=seeded("alpha", seed, step), dtype=torch.float64)
        return math.exp(self.mean + DEVIATION * float(draw))

    def learn(self, alpha: float, reward: float, rate: float) -> "AlphaPolicy":
        """The policy after one reward: ``mean += rate * advantage * (log alpha - mean) / deviation^2``.

        The advantage is the reward less the usual one, in units of its usual deviation, so that the rate means the same
        whatever the losses' scale is. The first rewards teach only what is usual.
        """
        kept = REWARD_MEMORY
        seen = kept * self.seen + (1 - kept)
        rewards = kept * self.rewards + (1 - kept) * reward
        squares = kept * self.squares + (1 - kept) * reward**2
        mean = self.mean
        if self.seen:
            usual = self.rewards / self.seen
            spread = math.sqrt(max(squares / seen - (rewards / seen) ** 2, 0.0))
            advantage = (reward - usual) / spread if spread else 0.0
            mean += rate * max(-3.0, min(3.0, advantage)) * (math.log(alpha) - self.mean) / DEVIATION**2
        return AlphaPolicy(mean, rewards, squares, seen)
