"""A change that was solved, as another variant starts from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guards.artifact.identity import refuse_mismatch
from guards.artifact.manifest import SourceRecord
from guards.artifact.store import Artifact, read_artifact
from guards.calibration.activations import Activations
from guards.calibration.corpus import Corpus
from guards.errors import ArtifactError, CalibrationError
from guards.methods.delta import Factors
from guards.methods.lunar.entry import LUNAR
from guards.methods.lunar.guard import LunarGuard
from guards.methods.lunar.stored import load


@dataclass(frozen=True)
class Change:
    """An artifact of the variant redirect, with its one layer and what is there: A is w, B the way that is pushed."""

    artifact: Artifact
    guard: LunarGuard
    layer: int
    factors: Factors

    def warnings(self, seed: int, corpora: Sequence[Corpus]) -> list[str]:
        """Where a guard that starts from it is measured on examples that it may have been fitted on: with other texts,
        or another seed, others are held out. Frames are no matter.
        """
        of, found = self.artifact.manifest.calibration, []
        leaks = "it may have been fitted on some that these figures are of"
        if _texts(of.sources) != _texts([record for corpus in corpora for record in corpus.records()]):
            found.append(f"{self.artifact.name} was calibrated with other examples: {leaks}; give both the same")
        if of.seed != seed:
            got = "an unknown seed" if of.seed is None else f"seed {of.seed}"
            found.append(f"{self.artifact.name} was calibrated with {got}, wanted {seed}: {leaks}; give both the same")
        return found


def _texts(sources: Sequence[SourceRecord]) -> list[tuple[str, str, int]]:
    """What dealing depends on, beside the seed."""
    return [(each.role, each.sha256, each.examples) for each in sources]


def read_change(folder: Path | None, model: Activations) -> Change:
    """The change in a folder. Raises CalibrationError where none is named, ArtifactError where it is none of this
    model's.
    """
    if folder is None:
        raise CalibrationError(
            "got no `change`, wanted an artifact of the variant redirect: calibrate that first, on the same examples"
        )
    artifact = read_artifact(folder)
    method, variant = artifact.manifest.method, artifact.manifest.parameters.get("variant", LUNAR.variant)
    if (method, variant) != (LUNAR.name, LUNAR.variant):
        raise ArtifactError(
            f"{artifact.name}: got method {method!r}, variant {variant!r}, wanted {LUNAR.name!r}, {LUNAR.variant!r}"
        )
    guard = load(artifact)
    ((layer, factors),) = guard.deltas.items()
    refuse_mismatch(artifact, model.identity)
    return Change(artifact, guard, layer, factors)
