"""What a guard is: stored, and bound to a device so that it can run inside a forward pass.

Suffixes: T tokens, F width of a site (this rank's slice of it), C columns of a guard at one place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, cast

from torch import nn

from guards.contract.accumulate import TOKEN, OverTokens
from guards.core.policy import Rule
from guards.core.verdict import GuardMode, Scope, Stage
from guards.model.sites import Place


class Guard(Protocol):
    """What every guard has: the layers it needs and the positions it judges."""

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def scope(self) -> Scope: ...


class OverRanks(StrEnum):
    """How the slices of tensor-parallel ranks become one number. `same`: each rank has all of it."""

    MAX = "max"
    SUM = "sum"
    SAME = "same"


class OverColumns(StrEnum):
    """How a part's columns, each of all ranks, become one number: added, or as the length of the vector they make.

    LENGTH is for parts that count a token by itself.
    """

    SUM = "sum"
    LENGTH = "length"


@dataclass(frozen=True)
class Part:
    """A separately judged piece of a guard: a cube of one prompt frame, or the whole guard.

    `label` is the frame, "" for a guard of one piece. `layers` are those it is read at. `over_tokens` says how its
    numbers at a sequence's tokens so far become one.
    """

    label: str
    layers: tuple[int, ...]
    over_tokens: OverTokens = TOKEN
    over_columns: OverColumns = OverColumns.SUM

    def reads(self, stage: Stage) -> bool:
        """Whether what it reads at a position of this stage is of that stage's words, or of all."""
        written = getattr(self.over_tokens, "written", None)
        return written is None or written == (stage is Stage.GENERATION)


@dataclass(frozen=True)
class Column:
    """What a guard says of each token at one place, for one of its parts (by index).

    The value of a part at a token is its columns as one number (`OverColumns`), over layers, after ranks became one.
    """

    place: Place
    part: int
    over_ranks: OverRanks


@dataclass(frozen=True)
class Health:
    """What an intervention's columns say: how much of `unit` it did to a token. It acts where that is above zero."""

    unit: str


NEURONS = Health("neurons")
"""Neurons moved."""
PUSH = Health("residual lengths")
"""How far a token was pushed, over the residual stream's usual length."""


class Bound(Protocol):
    """A guard with its tensors on the model's device.

    `taus` has one threshold for each part of a detector; an intervention has none and a `health` instead.
    """

    @property
    def parts(self) -> tuple[Part, ...]: ...

    @property
    def columns(self) -> tuple[Column, ...]: ...

    @property
    def taus(self) -> tuple[float, ...]: ...

    @property
    def health(self) -> Health | None: ...

    def at(self, place: Place, width: int) -> nn.Module:
        """What runs at a place, where vectors are `width` long over all ranks.

        Called with x [T, F] and positions [T], it returns the guard's columns there in their order, float32 [T, C];
        what is not finite in x makes them not finite. An intervention is called with `on_T` too, bool, and changes x in
        place where that is true, where it then says 0 else. At a site of both ends x is what the module gives, `width`
        the length of what it takes, and that, [T, F], is handed over last. Raises AttachError when the guard was made
        for another width.
        """
        ...


def fuse(acts: Sequence[nn.Module]) -> list[tuple[nn.Module, list[int]]]:
    """What to run at a place in these acts' stead, and whose columns each says, by index and in that order.

    Where several are of a class that has `fuse`, one act takes their place: it reads x once for all of them. Tensors of
    the acts become views of its own, so that what is written to them is written to it.
    """
    alike: dict[object, list[int]] = {}
    for index, act in enumerate(acts):
        alike.setdefault(type(act) if hasattr(act, "fuse") else index, []).append(index)
    return [
        (acts[of[0]] if len(of) == 1 else cast(Any, acts[of[0]]).fuse([acts[index] for index in of]), of)
        for of in alike.values()
    ]


def default_rules(bound: Mapping[str, Bound], scopes: Mapping[str, Scope]) -> dict[str, Rule]:
    """Each guard's own rule, enforced: its artifact's scope and taus."""
    return {name: Rule(GuardMode.ENFORCE, scopes[name], each.taus) for name, each in bound.items()}


def columns_at(columns: Sequence[Column], place: Place) -> list[int]:
    """Indices of the columns at a place."""
    return [index for index, column in enumerate(columns) if column.place == place]


def detectors(bound: Mapping[str, Bound]) -> dict[str, Bound]:
    """Those that judge, in their order."""
    return {name: each for name, each in bound.items() if each.health is None}


def interventions(bound: Mapping[str, Bound]) -> dict[str, Bound]:
    """Those that change activations, in their order.

    At a place that both share they act before every detector, which is to score what the model goes on with.
    """
    return {name: each for name, each in bound.items() if each.health is not None}
