"""The registry of methods: how each guard is stored, and how it acts once bound to a device.

A new method is one file beside `ksd.py` and one line in METHODS.
"""

from collections.abc import Mapping

from guards.artifact.store import Artifact
from guards.contract.guard import Guard
from guards.contract.method import Method
from guards.core.verdict import GuardKind
from guards.errors import ArtifactError
from guards.methods import ksd_variants
from guards.methods.neuron_adjust import stored as na_artifact
from guards.methods.selective_pruning import stored as prune_artifact

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
