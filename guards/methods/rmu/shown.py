"""How a calibration of the RMU family is shown."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from guards.calibration.shown import ShownTable
from guards.methods.rmu.calibrate import RmuCalibration
from guards.methods.rmu.ranks import Effect

HEADINGS = ("rank", "energy", "forget loss", "retain loss", "gain")


def _row(effect: Effect, chosen: Effect) -> tuple[str, ...]:
    name = "whole" if effect.rank is None else f"{effect.rank}{' (served)' if effect is chosen else ''}"
    return name, f"{effect.energy:.3f}", f"{effect.forget:.4g}", f"{effect.retain:.4g}", f"{effect.gain:.3f}"


def table(calibration: RmuCalibration) -> ShownTable:
    """One line a rank, on the examples that the rank was chosen by."""
    rows = tuple(_row(effect, calibration.chosen) for effect in calibration.effects)
    caption = "what deltas of each rank do on examples that were not trained on; 0: none"
    for name, each in calibration.beside.items():
        caption += (
            f"; report part: {name} has {each.forget:.4g} and {each.retain:.4g}, the served rank "
            f"{calibration.measured[1].forget:.4g} and {calibration.measured[1].retain:.4g}"
        )
    return ShownTable(HEADINGS, rows, caption)


def report(calibration: RmuCalibration) -> dict[str, Any]:
    """Every step, every rank, and the held-out losses."""
    return {
        "alpha": calibration.alpha,
        "steps": [step._asdict() for step in calibration.history],
        "ranks": [asdict(effect) for effect in calibration.effects],
        "served_rank": calibration.chosen.rank,
        "held_out": [asdict(effect) for effect in calibration.measured],
        "beside": {name: asdict(each) for name, each in calibration.beside.items()},
        "energies": {str(layer): dict(each) for layer, each in calibration.energies.items()},
    }


def plots(calibration: RmuCalibration, skill: str, *_: object) -> Mapping[str, bytes]:
    """Losses by step, and the gain of each rank."""
    from guards.calibration.drawing import lines

    ranks = [effect for effect in calibration.effects if effect.rank]
    return {
        "losses.png": lines(
            {
                "forget": [step.forget for step in calibration.history],
                "retain": [step.retain for step in calibration.history],
            },
            f"{skill}: losses of training batches",
            "step",
        ),
        "ranks.png": lines(
            {"gain": [effect.gain for effect in ranks], "energy": [effect.energy for effect in ranks]},
            f"{skill}: share of the whole delta's gain and energy",
            "power of 2 that the rank is",
        ),
    }
