"""`<output>-report/`: what a person reads about a calibration. Not part of the artifact, and no server reads it."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from guards.calibration.finished import Calibration
from guards.errors import ArtifactError

REPORT_NAME = "report.json"


def report_folder(output: Path) -> Path:
    """Where the report of an artifact goes: beside it, since an artifact's folder holds nothing else."""
    return output.with_name(output.name + "-report")


def refuse_report_folder(folder: Path) -> None:
    """Raises ArtifactError when `folder` holds something that is no report."""
    if folder.exists() and not (folder / REPORT_NAME).is_file():
        raise ArtifactError(f"{folder} exists and holds no {REPORT_NAME}: move it away or choose another output")


def report_of(calibration: Calibration, skill: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON-able report; `details` are the method's own."""
    return {
        "skill": skill,
        "method": calibration.method.name,
        "model": calibration.identity.model_dump(),
        "calibration": calibration.record.model_dump(mode="json"),
        "warnings": list(calibration.warnings),
        "canaries": {
            "firing": sum(canary.fires for canary in calibration.canaries),
            "not_firing": sum(not canary.fires for canary in calibration.canaries),
        },
        "seconds": {step: round(value, 3) for step, value in calibration.seconds.items()},
        "threads": torch.get_num_threads(),
        **details,
    }


def write_report(folder: Path, report: Mapping[str, Any], plots: Mapping[str, bytes]) -> None:
    """Writes report.json and the plots (file name -> PNG) as one folder, replacing an older report."""
    refuse_report_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (scratch / REPORT_NAME).write_text(text, encoding="utf-8")
        for name, data in plots.items():
            (scratch / name).write_bytes(data)
        os.chmod(scratch, 0o755)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
