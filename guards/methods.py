"""The registry of methods: how each guard is stored, and how it acts once bound to a device.

A new method is one file beside `ksd.py` and one line in METHODS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from guards import ksd_variants, na_artifact, prune_artifact
from guards.artifact import Artifact
from guards.errors import ArtifactError
from guards.part import Part
from guards.shard import Shard
from guards.sites import Place, Site
from guards.verdict import GuardKind, Scope


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


@dataclass(frozen=True)
class Method:
    """One entry of the registry."""

    name: str
    kind: GuardKind
    load: Callable[[Artifact], Guard]
    dump: Callable[[Any], tuple[dict[str, Any], dict[str, Tensor]]]
    bind: Callable[[Any, torch.device, Shard], BoundDetector | BoundIntervention]


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("ksd", GuardKind.DETECTOR, ksd_variants.load, ksd_variants.dump, ksd_variants.bind),
        Method(
            "neuron-adjust",
            GuardKind.INTERVENTION,
            na_artifact.load,
            na_artifact.dump,
            na_artifact.BoundNeuronAdjust,
        ),
        Method(
            "selective-pruning",
            GuardKind.INTERVENTION,
            prune_artifact.load,
            prune_artifact.dump,
            prune_artifact.BoundPrune,
        ),
    )
}


def method_of(artifact: Artifact) -> Method:
    """The method that made an artifact. Raises ArtifactError naming the known ones."""
    method = METHODS.get(artifact.manifest.method)
    if method is None:
        raise ArtifactError(
            f"{artifact.name}: got method {artifact.manifest.method!r}, wanted one of {', '.join(sorted(METHODS))}: "
            "a newer skillguard may know it"
        )
    return method


def load_guard(artifact: Artifact) -> Guard:
    """The guard that an artifact holds. Raises ArtifactError on a parameter or tensor that is off."""
    return method_of(artifact).load(artifact)
