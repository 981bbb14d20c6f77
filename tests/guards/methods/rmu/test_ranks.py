"""A delta of a rank is the nearest one, and the rank that is served gains what was asked for."""

import pytest
import torch

from guards.errors import CalibrationError
from guards.methods.rmu.ranks import Effect, choose_rank, decompose, ranks_up_to

DELTA = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))


def test_energy_is_what_the_nearest_delta_of_a_rank_keeps() -> None:
    part = decompose(DELTA)
    for rank in range(1, 7):
        a_RF, b_DR = part.factors(rank)
        assert (a_RF.shape, b_DR.shape, a_RF.dtype, b_DR.dtype) == (
            (rank, 10),
            (6, rank),
            torch.bfloat16,
            torch.bfloat16,
        )
        left = (DELTA - b_DR.float() @ a_RF.float()).square().sum() / DELTA.square().sum()
        assert float(left) == pytest.approx(1 - part.energy(rank), abs=2e-3)  # bfloat16 keeps 8 bits
    assert part.energy(0) == 0
    assert part.energy(6) == pytest.approx(1)


def test_a_zero_delta_is_refused() -> None:
    with pytest.raises(CalibrationError, match="a trained delta is zero"):
        decompose(torch.zeros(3, 4))


def test_ranks_double_up_to_the_limit() -> None:
    assert ranks_up_to(1) == (1,)
    assert ranks_up_to(6) == (1, 2, 4, 6)
    assert ranks_up_to(8) == (1, 2, 4, 8)


def found(*gains: float, whole: float = 1.0) -> list[Effect]:
    tried = [(0, 0.0), *zip((1, 2, 4, 8), gains, strict=False), (None, whole)]
    return [Effect(rank, 0.5, 1.0, 0.0, gain) for rank, gain in tried]


def test_the_smallest_rank_that_gains_enough_is_served() -> None:
    assert choose_rank(found(0.5, 0.96, 0.94, 0.99), 0.95).rank == 2
    assert choose_rank(found(0.5, 0.7, 0.8, 0.75), 0.95).rank == 4, "none does: the best"


def test_a_training_or_ranks_that_gain_nothing_are_refused() -> None:
    with pytest.raises(CalibrationError, match="training gained nothing on held-out text"):
        choose_rank(found(0.5, whole=0.0), 0.95)
    with pytest.raises(CalibrationError, match="no rank up to 2 gains anything"):
        choose_rank(found(-0.5, -0.1), 0.95)
