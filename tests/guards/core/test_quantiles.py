"""A score's place among those of a sample."""

import random
from collections.abc import Sequence

import pytest
from scipy.stats import kstest

from guards.core.quantiles import LEVELS, place, quantile_table, value_at


def placed(table: Sequence[float], count: int, values: Sequence[float], draw: random.Random) -> list[float]:
    return [draw.uniform(*place(table, count, value)) for value in values]


@pytest.mark.parametrize("count", [40, 300, 5000])
def test_places_are_uniform_where_values_are_as_the_samples(count: int) -> None:
    """Over many samples, since each sample is off by chance alone; and not where values are others."""
    draw = random.Random(count)

    def made(size: int, shift: float = 0.0) -> list[float]:
        return [draw.lognormvariate(shift, 0.7) for _ in range(size)]

    same, shifted = [], []
    for _ in range(200):
        table = quantile_table(made(count))
        same += placed(table, count, made(5), draw)
        shifted += placed(table, count, made(5, 0.5), draw)
    assert kstest(same, "uniform").pvalue > 0.01
    assert kstest(shifted, "uniform").pvalue < 1e-6, "the positive control"


def test_a_value_that_many_have_is_spread_evenly() -> None:
    """Texts without evidence all score the same."""
    draw = random.Random(0)

    def made(size: int) -> list[float]:
        return [2.0 if draw.random() < 0.6 else draw.random() for _ in range(size)]

    table = quantile_table(made(4000))
    places = placed(table, 4000, made(4000), draw)
    assert kstest(places, "uniform").statistic < 0.04, "a table's levels are .05 apart there"
    assert kstest([place(table, 4000, value)[0] for value in made(4000)], "uniform").statistic > 0.3
    low, high = place(table, 4000, 2.0)
    assert low == pytest.approx(0.4, abs=0.06)
    assert high == 1.0


def test_outside_the_sample_nothing_is_told_but_that() -> None:
    table = quantile_table([float(i) for i in range(1, 100)])
    assert place(table, 99, 0.5) == (0.0, 0.01)
    assert place(table, 99, 1000.0) == (0.99, 1.0)
    assert place(table, 99, 50.0) == pytest.approx((0.5, 0.5))
    assert place(table, 99, 50.5) == pytest.approx((0.505, 0.505))


def test_a_table_and_back() -> None:
    draw = random.Random(1)
    values = [draw.gauss(0, 1) for _ in range(2000)]
    table = quantile_table(values)
    assert len(table) == len(LEVELS) == 33
    assert list(LEVELS) == sorted(set(LEVELS))
    for level in (0.003, 0.02, 0.33, 0.5, 0.97):
        value = value_at(table, 2000, level)
        assert value is not None
        assert place(table, 2000, value) == pytest.approx((level, level))
        assert sum(each <= value for each in values) / 2000 == pytest.approx(level, abs=0.02)
    assert value_at(table, 2000, 1e-4) is None, "2,000 values tell nothing of one in 10,000"
    assert value_at(table, 2000, 1.0) == table[-1]


def test_one_value_and_none() -> None:
    assert quantile_table([3.0]) == (3.0,) * 33
    assert place(quantile_table([3.0]), 1, 3.0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="no values"):
        quantile_table([])
