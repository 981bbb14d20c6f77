"""How common a score is among texts that a guard leaves alone: its place in a table of quantiles."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

LEVELS = (
    *(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9),
    *(0.925, 0.95, 0.975, 0.98, 0.99, 0.999),
)
"""Of a table's values, in their order. Dense below, where detectors fire."""


def quantile_table(values: Sequence[float]) -> tuple[float, ...]:
    """The values at LEVELS of a sample: at the rank p * (n + 1), between its neighbours, and never outside the sample.

    Raises ValueError for an empty sample.
    """
    if not values:
        raise ValueError("got no values, wanted some")
    ordered, count = sorted(values), len(values)
    table = []
    for level in LEVELS:
        rank = min(max(level * (count + 1), 1.0), float(count))
        below = int(rank)
        above = min(below + 1, count)
        table.append(ordered[below - 1] + (rank - below) * (ordered[above - 1] - ordered[below - 1]))
    return tuple(table)


def place(table: Sequence[float], count: int, value: float) -> tuple[float, float]:
    """Between which levels a value lies in the table of a sample of `count`.

    Both are the same within the table. They are apart where many of the sample have this very value, and outside of
    it: a number drawn evenly between them is uniform, where values are as the sample's were.
    """
    known = _known(count)
    left, right = bisect_left(table, value), bisect_right(table, value)
    if right == 0:
        return 0.0, known[0]
    if left == len(table):
        return known[-1], 1.0
    if left == right:
        share = (value - table[left - 1]) / (table[left] - table[left - 1])
        level = known[left - 1] + share * (known[left] - known[left - 1])
        return level, level
    if right - left == 1 and 0 < left < len(table) - 1:
        return known[left], known[left]
    return _edge(known, left), _edge(known, right)


def _known(count: int) -> list[float]:
    """LEVELS as far as a sample of `count` tells them."""
    return [min(max(level, 1 / (count + 1)), count / (count + 1)) for level in LEVELS]


def _edge(known: Sequence[float], index: int) -> float:
    """Where what lies at and above an index begins: somewhere behind the level before it."""
    if index == 0:
        return 0.0
    return 1.0 if index == len(known) else (known[index - 1] + known[index]) / 2


def value_at(table: Sequence[float], count: int, level: float) -> float | None:
    """The value at a level; None below what the sample tells, and the largest above."""
    known = _known(count)
    if level < known[0]:
        return None
    right = bisect_right(known, level)
    if right == len(known):
        return table[-1]
    share = (level - known[right - 1]) / (known[right] - known[right - 1])
    return table[right - 1] + share * (table[right] - table[right - 1])
