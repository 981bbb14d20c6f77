"""The registry of methods. A method is a folder beside this file and one entry here.

A package that is installed beside this one may add entries of its own: its entry points of the group GROUP name them.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from guards.calibration.entry import Entry
from guards.errors import ArtifactError, MethodError
from guards.methods.cube.entry import CUBE
from guards.methods.lunar.entry import LUNAR
from guards.methods.lunar_abstain.entry import LUNAR_ABSTAIN
from guards.methods.lunar_trained.entry import LUNAR_TRAINED
from guards.methods.neuron_adjust.entry import NEURON_ADJUST
from guards.methods.probe.entry import PROBE
from guards.methods.probe_project.entry import PROBE_PROJECT
from guards.methods.rmu.entry import RMU
from guards.methods.selective_pruning.entry import SELECTIVE_PRUNING
from guards.methods.spans.entry import SPANS

if TYPE_CHECKING:
    from guards.artifact.store import Artifact
    from guards.contract.guard import Guard

__all__ = [
    "CUBE",
    "GROUP",
    "LUNAR",
    "LUNAR_ABSTAIN",
    "LUNAR_TRAINED",
    "NEURON_ADJUST",
    "PROBE",
    "PROBE_PROJECT",
    "RMU",
    "SELECTIVE_PRUNING",
    "SPANS",
    "load_guard",
    "method_of",
    "methods",
    "names",
    "variants",
]

GROUP = "skillguard.methods"
_SHIPPED = (
    SPANS,
    CUBE,
    PROBE,
    PROBE_PROJECT,
    NEURON_ADJUST,
    SELECTIVE_PRUNING,
    LUNAR,
    LUNAR_ABSTAIN,
    LUNAR_TRAINED,
    *RMU,
)
"""Of the variants of one method the first is the one that is calibrated where none is named."""

Key = tuple[str, str | None]
"""A method's name on disk, and its variant."""

_UNNAMED: Mapping[str, str | None] = {each.name: each.variant for each in (CUBE, LUNAR)}
"""By method, the variant of manifests that are older than its variants, and name none."""

_RETIRED: frozenset[Key] = frozenset({("ksd", "pooled")})
"""Of which there may still be artifacts."""


@cache
def methods() -> Mapping[Key, Entry]:
    """Every entry, shipped ones first.

    Raises MethodError where two entries have one name and variant, or where a package's entry cannot be loaded.
    """
    found: dict[Key, Entry] = {}
    for entry in (*_SHIPPED, *map(_load, entry_points(group=GROUP))):
        key = entry.name, entry.variant
        if key in found:
            raise MethodError(f"method {key} is registered twice: by {found[key].package} and {entry.package}")
        found[key] = entry
    return found


def _load(point: EntryPoint) -> Entry:
    try:
        entry = point.load()
    except Exception as error:  # another package's code
        raise MethodError(f"entry point {point.name} = {point.value} cannot be loaded ({error!r})") from error
    if not isinstance(entry, Entry):
        raise MethodError(f"entry point {point.name} = {point.value}: got a {type(entry).__name__}, wanted an Entry")
    return entry


def variants(name: str) -> dict[str, Entry]:
    """The entries of one method by variant, the default first; "" is the only one of a method without variants."""
    return {entry.variant or "": entry for entry in methods().values() if entry.name == name}


def names() -> list[str]:
    """The methods' names, in order."""
    return list(dict.fromkeys(name for name, _ in methods()))


def method_of(artifact: "Artifact") -> Entry:
    """The method that made an artifact. Raises ArtifactError naming the known ones."""
    name, variant = artifact.manifest.method, artifact.manifest.parameters.get("variant")
    if variant is None:
        variant = _UNNAMED.get(name)
    entry = methods().get((name, variant)) if variant is None or isinstance(variant, str) else None
    if entry is None and variant in [retired for method, retired in _RETIRED if method == name]:
        raise ArtifactError(
            f"{artifact.name}: got method {name!r}, variant {variant!r}, which is retired: calibrate the guard again "
            f"with `skillguard calibrate {name}`"
        )
    if entry is None:
        known = ", ".join(sorted(" ".join(filter(None, key)) for key in methods()))
        raise ArtifactError(
            f"{artifact.name}: got method {name!r}{f', variant {variant!r}' if variant is not None else ''}, wanted "
            f"one of {known}: a newer skillguard may know it"
        )
    return entry


def load_guard(artifact: "Artifact") -> "Guard":
    """The guard that an artifact holds. Raises ArtifactError on a parameter or tensor that is off."""
    return method_of(artifact).load(artifact)
