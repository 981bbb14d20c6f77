"""What a calibration of a linear detector leaves open: which tokens are fitted, what is judged, and how directions come
to be. Everything else (examples, taus, caps, rates, canaries) is the same for all, in `calibrate.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from torch import Tensor

from guards.calibration.corpus import Corpus
from guards.calibration.entry import Entry
from guards.contract.accumulate import TOKEN
from guards.contract.spans import MessageMean, Rise
from guards.methods.spans.guard import LayerWeights, Strategy, Windows
from guards.methods.spans.held import Held
from guards.methods.spans.passes import WINDOW, WindowsOf, last_token, windows_of

KAPPAS = (0.5, 0.6, 0.7, 0.8, 0.9)
WEIGHTS = (1.0, 3.0, 6.0, 12.0)


@dataclass(frozen=True)
class Aggregation:
    """From tokens to a text: `windows` are what is fitted; `ways` are tried for prompts (False) and for answers (True).

    `answers`: whether these are judged by taus of their own, else not at all. `fitted` says in words what is.
    """

    fitted: str
    windows: WindowsOf
    ways: Callable[[bool], Sequence[tuple[Strategy, ...]]]
    answers: bool


def _stretches(written: bool) -> list[tuple[Strategy, ...]]:
    rises, means = [Rise(each, written) for each in KAPPAS], [MessageMean(each, written) for each in WEIGHTS]
    return list(product(rises, means))


STRETCHES = Aggregation(f"windows of {WINDOW} tokens", windows_of, _stretches, answers=True)
"""Windows are fitted, and a stretch and the mean of a message judged."""
LAST_TOKEN = Aggregation("last tokens", last_token, lambda _: [(TOKEN,)], answers=False)
"""The last token of a prompt is fitted and judged."""


@dataclass(frozen=True, eq=False)
class Direction:
    """`terms`, and the share that each of `Fitted.sets` has in its values, float32 [C]."""

    terms: tuple[LayerWeights, ...]
    share_C: Tensor


class Directions(Protocol):
    """Those of which the best is taken."""

    @property
    def candidates(self) -> Sequence[Direction]: ...

    def note(self, layers: Sequence[int]) -> str:
        """What an artifact says of how the one over these layers came to be."""
        ...


class Fitted(Protocol):
    """What was fitted. `sets` is what examples are read under."""

    @property
    def sets(self) -> Sequence[tuple[LayerWeights, ...]]: ...

    def directions(self, held: Held) -> Directions:
        """Made of `sets`, with `held`, prompts of the threshold part and their values under these."""
        ...


@dataclass(frozen=True)
class Recipe:
    """`layers` are those that are looked at, of a model of so many. `fit` is given both sides' windows, and layers.

    `warnings`: of both sides' examples, beside those of any guard over spans.
    """

    entry: Entry
    aggregation: Aggregation
    layers: Callable[[int], tuple[int, ...]]
    fit: Callable[[Windows, Windows, Sequence[int]], Fitted]
    warnings: Callable[[Sequence[Corpus]], list[str]] = lambda _: []
