"""Trains deltas by an objective: forget and retain batches in turns with Adam, and a state that can be kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from guards.calibration.tuning import Example, Opened, Tuned
from guards.errors import CalibrationError
from guards.methods.rmu.alpha import AlphaPolicy
from guards.methods.rmu.drawing import batch_of
from guards.methods.rmu.objectives import Objective

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""torch's names of Adam's state of a parameter, beside its count of steps."""


@dataclass(frozen=True)
class Sides:
    """The examples of both sides."""

    forget: Sequence[Example]
    retain: Sequence[Example]


def looked_at(examples: Sequence[Example]) -> int:
    """Tokens of examples that are looked at."""
    return sum(len(ids) - first for ids, first in examples)


class Step(NamedTuple):
    """What one step saw: the alpha it was made with, and both losses before it."""

    alpha: float
    forget: float
    retain: float


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How is trained. `alpha_rate` 0: alpha stays; `retain_worth` is the fixed weight of the reward."""

    steps: int
    batch: int
    rate: float
    alpha: float
    alpha_rate: float = 0.0
    retain_worth: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class TrainingState:
    """All that a training goes on from: steps made, alpha's policy, and tensors by name (deltas, Adam's moments)."""

    history: tuple[Step, ...]
    policy: AlphaPolicy
    tensors: Mapping[str, Tensor]


class Training:
    """Trains the deltas of a model, step after step. A `state` may be kept and given to another one's `restore`."""

    def __init__(self, tuned: Tuned, objective: Objective, sides: Sides, schedule: Schedule) -> None:
        self._tuned, self._objective, self._sides, self._schedule = tuned, objective, sides, schedule
        self._adam = torch.optim.Adam(tuned.deltas.values(), lr=schedule.rate)
        self._history: list[Step] = []
        self._policy = AlphaPolicy(math.log(schedule.alpha))

    @property
    def history(self) -> tuple[Step, ...]:
        """Every step so far."""
        return tuple(self._history)

    @property
    def alpha(self) -> float:
        """The weight of the retain loss, as it is learned so far."""
        return self._policy.alpha if self._schedule.alpha_rate else self._schedule.alpha

    def run(
        self, advance: Callable[[Step], object] = lambda _: None, keep: Callable[[], object] = lambda: None
    ) -> None:
        """All steps that are left; `advance` is told of each, and `keep` called after it.

        Raises CalibrationError where a loss is not finite.
        """
        while len(self._history) < self._schedule.steps:
            step = self._step(len(self._history))
            self._history.append(step)
            advance(step)
            keep()

    def _step(self, index: int) -> Step:
        schedule = self._schedule
        learned = schedule.alpha_rate > 0
        alpha = self._policy.draw(schedule.seed, index) if learned else schedule.alpha
        batches = [
            batch_of(examples, schedule.batch, side, schedule.seed, index)
            for side, examples in (("forget", self._sides.forget), ("retain", self._sides.retain))
        ]
        opened = [self._tuned.open(self._objective.layers, batch) for batch in batches]
        self._adam.zero_grad()
        losses = []
        for loss, one, weight, share in zip(
            self._losses(), opened, (1.0, alpha), self._token_shares(batches), strict=True
        ):
            value = loss(one.after(), one.before)
            torch.autograd.backward(weight * share * value)
            losses.append(float(value.detach()))
        if not all(map(math.isfinite, losses)):
            raise CalibrationError(
                f"step {index}: got losses {losses}, wanted finite ones: lower `rate`, or train in float32"
            )
        self._adam.step()
        if learned:
            reward = self._worth(losses) - self._worth(self._measured(opened))
            self._policy = self._policy.learn(alpha, reward, schedule.alpha_rate)
        return Step(alpha, *losses)

    def _token_shares(self, batches: Sequence[Sequence[Example]]) -> list[float]:
        """Tokens of each side's batch over those of a usual one, where the objective weighs by tokens; else 1.

        A loss is the mean over a batch's tokens: by these shares its gradient is, on average, that over all tokens.
        """
        if not self._objective.by_token:
            return [1.0] * len(batches)
        return [
            looked_at(batch) / (len(batch) * looked_at(examples) / len(examples))
            for batch, examples in zip(batches, (self._sides.forget, self._sides.retain), strict=True)
        ]

    def _losses(self) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        return self._objective.forget, self._objective.retain

    def _worth(self, losses: Sequence[float]) -> float:
        return losses[0] + self._schedule.retain_worth * losses[1]

    @torch.no_grad()
    def _measured(self, opened: Sequence[Opened]) -> list[float]:
        return [float(loss(one.after(), one.before)) for loss, one in zip(self._losses(), opened, strict=True)]

    def state(self) -> TrainingState:
        """What it goes on from. Its tensors are the training's own: write them before the next step."""
        tensors = {}
        for layer, delta in self._tuned.deltas.items():
            tensors[f"delta.{layer}"] = delta.detach()
            tensors |= {f"{name}.{layer}": self._adam.state[delta][name] for name in _MOMENTS}
        return TrainingState(self.history, self._policy, tensors)

    @torch.no_grad()
    def restore(self, state: TrainingState) -> None:
        """Goes on from a state of a training of the same deltas."""
        self._history, self._policy = list(state.history), state.policy
        for layer, delta in self._tuned.deltas.items():
            delta.copy_(state.tensors[f"delta.{layer}"])
            moments = {name: state.tensors[f"{name}.{layer}"].to(delta.device) for name in _MOMENTS}
            self._adam.state[delta] = {"step": torch.tensor(float(len(state.history))), **moments}
