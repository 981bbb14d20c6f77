"""From trained deltas to low-rank ones: singular values, and what each rank does on text that was not trained on.

Suffixes: D residual width, F feed-forward width, R rank.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guards.calibration.tuning import Tuned
from guards.errors import CalibrationError
from guards.methods.rmu.objectives import Objective
from guards.methods.rmu.training import Sides, looked_at


@dataclass(frozen=True)
class Decomposition:
    """A delta ``left diag(values) right``, values falling, float32: [D, K], [K] and [K, F]."""

    left_DK: Tensor
    values_K: Tensor
    right_KF: Tensor

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """The nearest delta of a rank as ``b a``: a [R, F] and b [D, R], bfloat16, each with half of the scale."""
        root_R = self.values_K[:rank].sqrt()
        return (root_R[:, None] * self.right_KF[:rank]).bfloat16(), (self.left_DK[:, :rank] * root_R).bfloat16()

    def nearest(self, rank: int) -> Tensor:
        """That delta as it is served, float32 [D, F]; of rank 0 zero."""
        a_RF, b_DR = self.factors(rank)
        return b_DR.float() @ a_RF.float()

    def energy(self, rank: int) -> float:
        """Share of the delta's squared entries that a rank keeps."""
        squares_K = self.values_K.double().square()
        return float(squares_K[:rank].sum() / squares_K.sum())


@torch.no_grad()
def decompose(delta_DF: Tensor) -> Decomposition:
    """Raises CalibrationError for a delta that is zero: nothing was trained."""
    if not bool(delta_DF.any()):
        raise CalibrationError("a trained delta is zero: its layer lies above what is looked at, or `rate` is too low")
    left_DK, values_K, right_KF = torch.linalg.svd(delta_DF.float(), full_matrices=False)
    return Decomposition(left_DK, values_K, right_KF)


@dataclass(frozen=True)
class Effect:
    """Both losses with deltas of one rank; `gain`: how much of what the whole deltas gain is gained.

    `rank` None: the whole ones; 0: none. `energy` is the mean of the layers'.
    """

    rank: int | None
    energy: float
    forget: float
    retain: float
    gain: float


def ranks_up_to(limit: int) -> tuple[int, ...]:
    """1, 2, 4, ... and the limit."""
    return tuple(sorted({*(1 << power for power in range(limit.bit_length())), limit}))


@dataclass(frozen=True)
class Measuring:
    """On what deltas are measured: both sides' examples, `batch` at a time; `alpha` weighs the retain loss."""

    tuned: Tuned
    objective: Objective
    sides: Sides
    alpha: float
    batch: int


Deltas = Callable[[int], Tensor]
"""The delta of a layer, [D, F], made when it is asked for."""


@torch.no_grad()
def losses(on: Measuring, tried: Sequence[Deltas], advance: Callable[[int], object] = lambda _: None) -> Tensor:
    """Forget and retain loss with each of several deltas in the place of the model's, float64 [tried, 2].

    A loss is the mean over batches, weighted by what each has of tokens that are looked at. The model's deltas stay.
    """
    whole = {layer: delta.detach().clone() for layer, delta in on.tuned.deltas.items()}
    sums = torch.zeros(len(tried), 2, dtype=torch.float64)
    try:
        for side, (loss, examples) in enumerate(
            ((on.objective.forget, on.sides.forget), (on.objective.retain, on.sides.retain))
        ):
            total = 0
            for start in range(0, len(examples), on.batch):
                some = examples[start : start + on.batch]
                opened = on.tuned.open(on.objective.layers, some)
                weight = looked_at(some)
                total += weight
                for index, deltas in enumerate(tried):
                    _put(on.tuned, deltas)
                    sums[index, side] += weight * float(loss(opened.after(), opened.before))
                advance(sum(len(each.ids) for each in some))
            sums[:, side] /= total
    finally:
        _put(on.tuned, whole.__getitem__)
    return sums


def _put(tuned: Tuned, deltas: Deltas) -> None:
    for layer, delta in tuned.deltas.items():
        delta.copy_(deltas(layer))


def effects(
    on: Measuring,
    parts: Mapping[int, Decomposition],
    ranks: Sequence[int],
    advance: Callable[[int], object] = lambda _: None,
) -> list[Effect]:
    """What none, each rank in bfloat16 as it is served, and the whole deltas do to the losses."""
    whole = {layer: delta.detach().clone() for layer, delta in on.tuned.deltas.items()}

    def of(rank: int | None) -> Deltas:
        if rank is None:
            return whole.__getitem__
        return lambda layer: parts[layer].nearest(rank)

    tried: list[int | None] = [0, *ranks, None]
    measured = losses(on, [of(rank) for rank in tried], advance)
    totals = measured[:, 0] + on.alpha * measured[:, 1]
    gained = float(totals[0] - totals[-1])
    found = []
    for index, rank in enumerate(tried):
        energies = [1.0 if rank is None else part.energy(rank) for part in parts.values()]
        gain = float(totals[0] - totals[index]) / gained if gained > 0 else 0.0
        forget, retain = measured[index].tolist()
        found.append(Effect(rank, sum(energies) / len(energies), forget, retain, gain))
    return found


def choose_rank(found: Sequence[Effect], kept: float) -> Effect:
    """The smallest rank whose gain is at least `kept`; the one of the largest gain where none is.

    Raises CalibrationError where the whole deltas gain nothing on text that they were not trained on, or no rank does.
    """
    if not found[-1].gain > 0:
        raise CalibrationError(
            f"training gained nothing on held-out text: forget loss {found[0].forget:.4g} became "
            f"{found[-1].forget:.4g}, retain loss {found[-1].retain:.4g}; more `steps`, another `layer` or a lower "
            "`alpha` may"
        )
    ranks = [effect for effect in found if effect.rank]
    chosen = next((effect for effect in ranks if effect.gain >= kept), max(ranks, key=lambda effect: effect.gain))
    if not chosen.gain > 0:
        raise CalibrationError(
            f"no rank up to {ranks[-1].rank} gains anything of what the whole deltas gain: raise `max_rank`"
        )
    return chosen
