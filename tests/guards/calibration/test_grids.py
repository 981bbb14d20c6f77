"""A choice at the edge of what was tried says so."""

import pytest

from guards.calibration.grids import at_edge


@pytest.mark.parametrize(
    ("chosen", "tried", "said"),
    [
        (1.0, (1.0, 2.0, 4.0), ["beta 1 is the least that was tried: a smaller one might do better"]),
        (4.0, (1.0, 2.0, 4.0), ["beta 4 is the largest that was tried: a larger one might do better"]),
        (2.0, (1.0, 2.0, 4.0), []),
        (2.0, (2.0,), []),
        (2.0, (2.0, 4.0), []),
    ],
)
def test_the_edges_of_three_or_more_are_told(chosen: float, tried: tuple[float, ...], said: list[str]) -> None:
    assert at_edge("beta", chosen, tried) == said
