"""`<output>-report/`: what a person reads about a calibration. Not part of the artifact, and no server reads it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from guards.artifact.exchange import refuse_strays, write_folder
from guards.artifact.manifest import Rate
from guards.calibration.finished import Calibration
from guards.errors import ArtifactError
from guards.methods.cube.calibrate import FrameResult, KSDCalibration, LayerResult
from guards.methods.neuron_adjust.calibrate import NeuronAdjustCalibration
from guards.methods.pooled.calibrate import Candidate, PooledCalibration, PooledFrame
from guards.methods.selective_pruning.calibrate import PruneCalibration

REPORT_NAME = "report.json"


def report_folder(output: Path) -> Path:
    """Where the report of an artifact goes: beside it, since an artifact's folder holds nothing else."""
    return output.with_name(output.name + "-report")


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


def _rate(rate: Rate) -> dict[str, Any]:
    return rate.model_dump()


def _layer(result: LayerResult) -> dict[str, Any]:
    return {
        "layer": result.fit.cube.layer,
        "auroc_threshold_part": result.auroc,
        "auroc": result.reported_auroc,
        "margin": result.margin,
        "tau": result.tau,
        "k": result.fit.cube.k,
        "key_vectors": result.fit.vectors,
        "floored_dimensions": result.fit.floored,
        "recall": _rate(result.recall),
        "false_abstention": _rate(result.false_abstention),
    }


def _frame(result: FrameResult) -> dict[str, Any]:
    return {
        "frame": result.frame,
        "layer": result.chosen.fit.cube.layer,
        "tau": result.tau,
        "k": result.chosen.fit.cube.k,
        "recall": _rate(result.recall),
        "false_abstention": _rate(result.false_abstention),
        "false_abstention_by_source": {name: _rate(rate) for name, rate in result.sources.items()},
        "auroc": result.chosen.reported_auroc,
        "layers": [_layer(layer) for layer in result.layers],
    }


def _pooled_frame(result: PooledFrame) -> dict[str, Any]:
    return {
        "frame": result.frame,
        "recall": _rate(result.recall),
        "false_abstention": _rate(result.false_abstention),
        "false_abstention_by_source": {name: _rate(rate) for name, rate in result.sources.items()},
        "auroc": result.auroc,
    }


def _candidate(each: Candidate) -> dict[str, Any]:
    return {
        "layers": list(each.layers),
        "auroc_threshold_part": each.auroc,
        "auroc": each.reported_auroc,
        "margin": each.margin,
        "tau": each.tau,
        "floored_dimensions": each.floored,
        "recall": _rate(each.recall),
        "false_abstention": _rate(each.false_abstention),
    }


def report_of(calibration: Calibration, skill: str) -> dict[str, Any]:
    """The JSON-able report."""
    report: dict[str, Any] = {
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
    }
    if isinstance(calibration, KSDCalibration):
        report["frames"] = [_frame(result) for result in calibration.frames]
    if isinstance(calibration, PooledCalibration):
        report["layers"] = list(calibration.chosen.layers)
        report["tau"] = calibration.chosen.tau
        report["key_vectors"] = calibration.vectors
        report["frames"] = [_pooled_frame(result) for result in calibration.frames]
        report["candidates"] = [_candidate(each) for each in calibration.candidates]
    if isinstance(calibration, NeuronAdjustCalibration):
        report["neurons_by_layer"] = list(calibration.neurons_by_layer)
        report["tokens"] = dict(calibration.tokens)
    if isinstance(calibration, PruneCalibration):
        report["feed_forward_by_layer"] = list(calibration.feed_forward_by_layer)
        report["attention_by_layer"] = list(calibration.attention_by_layer)
        report["tokens"] = dict(calibration.tokens)
    return report


def write_report(folder: Path, report: Mapping[str, Any], plots: Mapping[str, bytes]) -> None:
    """Writes report.json and the plots (file name -> PNG) as one folder, replacing an older report.

    Raises ArtifactError, with nothing written, when the folder holds anything else.
    """
    folder = folder.resolve()
    refuse_report_folder(folder)
    text = json.dumps({**report, "plots": sorted(plots)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_folder(folder, {REPORT_NAME: text.encode(), **plots})
