"""What a training leaves open: which layers, towards what, and as which guard. Everything else (examples, steps, ranks,
report, serving) is the same for all, in `calibrate.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from guards.calibration.corpus import Corpus, Share
from guards.calibration.entry import Entry
from guards.contract.guard import Guard
from guards.methods.delta import Factors
from guards.methods.rmu.examples import DEAL
from guards.methods.rmu.objectives import Objective
from guards.methods.rmu.training import Sides


@dataclass(frozen=True)
class Recipe:
    """`layers` are those that are trained, of a model of so many; `objective` is made of them and of the examples.

    `last_only`: of forget texts only last tokens are looked at.
    `beside`: deltas that were found otherwise, [d_model, d_ff] by name and layer, which are measured beside the trained
    ones. `files`: digests of what else decides a step, by name. `notes` come before those of the training, `warnings`
    of both sides' examples beside its own.
    """

    entry: Entry
    layers: Callable[[int], tuple[int, ...]]
    objective: Callable[[tuple[int, ...], Sides], Objective]
    guard: Callable[[Mapping[int, Factors]], Guard]
    last_only: bool = False
    deal: Sequence[Share] = DEAL
    beside: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: Callable[[Sequence[Corpus]], list[str]] = lambda _: []
