"""`<output>-report/`: what a person reads about a calibration. Not part of the artifact, and no server reads it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from guards.artifact.exchange import refuse_strays, write_folder
from guards.calibration.finished import Calibration
from guards.errors import ArtifactError

REPORT_NAME = "report.json"


def report_folder(output: Path) -> Path:
    """Where the report of an artifact goes: beside it, since an artifact's folder holds nothing else."""
    named = output if output.name.strip(".") else output.resolve()
    return named.with_name(named.name + "-report")


def refuse_report_folder(folder: Path) -> None:
    """Raises ArtifactError when `folder` holds anything that is not of a report: replacing removes all of it."""
    if not folder.exists():
        return
    if not (folder / REPORT_NAME).is_file():
        raise ArtifactError(f"{folder} exists and holds no {REPORT_NAME}: move it away or choose another output")
    refuse_strays(folder, (REPORT_NAME, *_plots_in(folder)), "a report")


def _plots_in(folder: Path) -> list[str]:
    """The plots that a report names; none where the file is damaged, or is some other program's."""
    try:
        names = json.loads((folder / REPORT_NAME).read_bytes())["plots"]
    except (ValueError, LookupError, TypeError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def report_of(calibration: Calibration, skill: str, digest: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON-able report; `digest` is of the artifact that it belongs to, and `details` are the method's own."""
    return {
        "digest": digest,
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
    """Writes report.json and the plots (file name -> PNG) as one folder, replacing an older report.

    Raises ArtifactError, with nothing written, when the folder holds anything else.
    """
    folder = folder.resolve()
    refuse_report_folder(folder)
    text = json.dumps({**report, "plots": sorted(plots)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_folder(folder, {REPORT_NAME: text.encode(), **plots})
