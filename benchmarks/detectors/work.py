"""What a run keeps on disk, so that the same command goes on where it was stopped. Suffixes: E examples.

Under one folder for each model and each state of the code that judges: every fitted detector as an artifact, and what
it said of every set of prompts, by the artifact's digest and the prompts' token ids. Nothing that was kept for other
weights, texts or code is ever taken.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.detectors.plans import Fitting
from benchmarks.detectors.ratios import Detector
from guards.artifact.store import read_artifact
from guards.calibration.activations import TokenIds
from guards.calibration.finished import Calibration
from guards.errors import CalibrationError, DataError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.registry import load_guard, method_of

ROOT = Path(__file__).resolve().parent.parent.parent
CODE = ("guards/**/*.py", *(f"benchmarks/detectors/{name}.py" for name in ("keys", "ratios", "variants")))
"""What a detector and its ratios depend on."""


def _digest(*parts: str | bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return found.hexdigest()[:16]


def _code() -> str:
    files = sorted(path for pattern in CODE for path in ROOT.glob(pattern))
    return _digest(*(part for path in files for part in (str(path.relative_to(ROOT)), path.read_bytes())))


def _refusal(place: Path) -> Path:
    return place.with_suffix(".refused")


@dataclass(frozen=True)
class Fitted:
    """A detector, and the digest of its artifact."""

    detector: Detector
    digest: str


class Work:
    """The folder of one model."""

    def __init__(self, folder: Path, model: LoadedModel) -> None:
        key = _digest(model.identity.model_dump_json(), model.codec.chat.sha256 or "", _code())
        self.folder = folder / key

    def place(self, detector: str, skill: str, fitting: Fitting) -> Path:
        """Where a detector's artifact lies, by all that it is fitted on."""
        sides = [[(source.name, *source.texts) for source in side] for side in (fitting.forget, fitting.retain)]
        key = _digest(json.dumps([sides, fitting.frames]))
        return self.folder / "guards" / f"{detector}-{skill}-{key}"

    def holds(self, place: Path) -> bool:
        """Whether a detector, or why there is none, was kept there."""
        return place.exists() or _refusal(place).exists()

    def keep(self, place: Path, skill: str, calibrate: Callable[[], Calibration]) -> None:
        """Fits a detector and writes it, or why it cannot be fitted."""
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            calibrate().save(place, skill)
        except (CalibrationError, DataError) as error:
            _refusal(place).write_text(str(error), encoding="utf-8")

    def fitted(self, place: Path) -> Fitted:
        """The detector that was kept there. Raises CalibrationError where it could not be fitted."""
        if _refusal(place).exists():
            raise CalibrationError(_refusal(place).read_text(encoding="utf-8"))
        artifact = read_artifact(place)
        return Fitted(Detector(method_of(artifact), load_guard(artifact)), artifact.digest)

    def _cell(self, fitted: Fitted, examples: Sequence[TokenIds]) -> Path:
        return self.folder / "cells" / fitted.digest[:16] / f"{_digest(json.dumps(examples))}.json"

    def ratios(self, fitted: Fitted, examples: Sequence[TokenIds]) -> Tensor | None:
        """What was kept of a detector's ratios on these prompts [E], None where nothing was."""
        path = self._cell(fitted, examples)
        if not path.exists():
            return None
        return torch.tensor(json.loads(path.read_text(encoding="utf-8")), dtype=torch.float32)

    def keep_ratios(self, fitted: Fitted, examples: Sequence[TokenIds], ratio_E: Tensor) -> None:
        """Writes them whole or not at all."""
        path = self._cell(fitted, examples)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".part")
        scratch.write_text(json.dumps(ratio_E.tolist()), encoding="utf-8")
        os.replace(scratch, path)
