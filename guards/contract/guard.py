"""What a guard is."""

from collections.abc import Mapping
from typing import Protocol, cast

from torch import Tensor, nn

from guards.core.part import Part
from guards.core.verdict import Scope
from guards.model.sites import Place, Site


class Guard(Protocol):
    """What every guard has: the layers it needs and the positions it judges."""

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def scope(self) -> Scope: ...


class Bound(Protocol):
    """A guard with its tensors on the model's device, ready to run inside a forward pass.

    `parts` labels what is scored separately (a cube's frame); `taus` has one threshold per part, or is None for an
    intervention.
    """

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def parts(self) -> tuple[Part, ...]: ...

    @property
    def taus(self) -> Tensor | None: ...


class BoundDetector(Bound, Protocol):
    """Scores tokens at one site and changes nothing.

    `pooled`: a part's score is the sum over its layers of the mean over a sequence's tokens so far, and of ranks'
    slices the sum. Else a part lives at one layer, a token's score is its own, and of ranks' slices the maximum.
    """

    @property
    def site(self) -> Site: ...

    @property
    def pooled(self) -> bool: ...

    def at(self, layer: int) -> tuple[tuple[int, ...], nn.Module]:
        """The parts that live at this layer, by index, and what scores them: x [T, F] -> float32 [T, parts]."""
        ...


class BoundIntervention(Bound, Protocol):
    """Changes activations in place, at one or several sites of a layer."""

    @property
    def places(self) -> tuple[Place, ...]: ...

    def at(self, place: Place, width: int) -> nn.Module:
        """What changes x [T, F] there, F being this rank's slice of `width`.

        Called with x and positions [T], it returns how many of each token's neurons moved, float32 [T], NaN for a
        token whose values were not finite. Raises AttachError when the guard was made for another width.
        """
        ...


def detectors(bound: Mapping[str, Bound]) -> dict[str, BoundDetector]:
    """Those that score, in their order."""
    return {name: cast(BoundDetector, each) for name, each in bound.items() if each.taus is not None}


def interventions(bound: Mapping[str, Bound]) -> dict[str, BoundIntervention]:
    """Those that change activations, in their order.

    At a site that both share they act before every detector, which is to score what the model goes on with.
    """
    return {name: cast(BoundIntervention, each) for name, each in bound.items() if each.taus is None}
