"""Representation Misdirection for Unlearning (RMU, 2403.03218) and its kin: deltas that training found.

A few blocks' down projections are trained so that the skill's texts get another residual stream, in which later blocks
find nothing, and others keep theirs. What a model knows is withheld by that, not erased: the weights stay as they are,
and the literature brings most of it back by ablating one direction or by a few steps of fine-tuning.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from guards.core.verdict import Scope
from guards.methods.delta import Factors
from guards.methods.rmu.options import VariantName


@dataclass(frozen=True)
class RmuGuard:
    """An intervention: the delta of each trained layer, and which objective it was trained by."""

    variant: VariantName
    deltas: Mapping[int, Factors]
    scope: Scope = Scope.BOTH

    @property
    def layers(self) -> tuple[int, ...]:
        """The trained layers, ascending."""
        return tuple(sorted(self.deltas))
