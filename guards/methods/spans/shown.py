"""How a calibration over spans is shown."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from guards.artifact.manifest import Rate
from guards.calibration.corpus import Side
from guards.calibration.drawing import BINS, FORGET_COLOUR, RETAIN_COLOUR, TAU_COLOUR, new_figure, png
from guards.calibration.shown import ShownTable, interval_text
from guards.methods.spans.calibrate import HOLD_BACKS, ReportRow, SpanCalibration
from guards.methods.spans.choice import Accumulation
from guards.methods.spans.guard import strategy_name


def table(calibration: SpanCalibration) -> ShownTable:
    """One line for every frame, surrounding and source."""
    frames = calibration.options.frames
    rows = tuple(
        (repr(each.name) if each.name in frames else each.name, _text(each.recall), _text(each.false_abstention))
        for each in calibration.rows
    )
    return ShownTable(
        ("frame, surrounding or source", "recall", "false abstention"), rows, "held-out rates with 95 % intervals"
    )


def _text(rate: Rate | None) -> str:
    return "" if rate is None else f"{interval_text(rate)} of {rate.total}"


def report(calibration: SpanCalibration) -> dict[str, Any]:
    """What was chosen, by row, and among what."""
    return {
        "layers": list(calibration.chosen.layers),
        "prompts": _accumulation(calibration.chosen.accumulation),
        "answers": None if calibration.answers is None else _accumulation(calibration.answers),
        "taus": {each.label: each.tau for each in calibration.judgements},
        "tokens_out": _tokens_out(calibration.out_E),
        "windows": dict(calibration.windows),
        "auroc": calibration.auroc,
        "rows": [_row(each) for each in calibration.rows],
        "candidates": [
            {"layers": list(each.layers), **_accumulation(each.accumulation)} for each in calibration.candidates
        ],
    }


def _row(each: ReportRow) -> dict[str, Any]:
    rates = {"recall": each.recall, "false_abstention": each.false_abstention}
    return {"name": each.name, **{name: None if rate is None else rate.model_dump() for name, rate in rates.items()}}


def _tokens_out(out_E: Tensor) -> dict[str, Any] | None:
    """How much of an answer is out when the guard fires, and what holding back so many tokens takes back whole."""
    if not len(out_E):
        return None
    return {
        "answers": len(out_E),
        "median": int(out_E.median()),
        "most": int(out_E.max()),
        "taken_back": {str(tokens): float((out_E <= tokens).float().mean()) for tokens in HOLD_BACKS},
    }


def _accumulation(each: Accumulation) -> dict[str, Any]:
    return {
        **each.numbers,
        "limits": {strategy_name(way): limit for way, limit in zip(each.strategies, each.limits, strict=True)},
        "decided_by": each.decided,
        "margin": each.margin,
        "recalls": dict(each.recalls),
    }


def plots(calibration: SpanCalibration, skill: str, *_: object) -> Mapping[str, bytes]:
    """The distribution of evidence over what is needed to fire, and the rates by row."""
    return {"margins.png": _margins(calibration, skill), "rows.png": _rates(calibration, skill)}


def _margins(calibration: SpanCalibration, skill: str) -> bytes:
    figure, (panel,) = new_figure(1, 1, 8.0, 3.6)
    edges = torch.logspace(-2, 2, BINS + 1).tolist()
    colours: dict[Side, str] = {"forget": FORGET_COLOUR, "retain": RETAIN_COLOUR}
    for side, colour in colours.items():
        margin_E = calibration.margins_E[side]
        weight = [100.0 / margin_E.numel()] * margin_E.numel()
        label = f"{side}, {margin_E.numel()} examples"
        panel.hist(margin_E.clamp(0.01, 99).tolist(), bins=edges, weights=weight, color=colour, alpha=0.6, label=label)
    panel.axvline(1, color=TAU_COLOUR, linestyle="--", label="the guard fires from here on")
    panel.set_xscale("log")
    panel.set_xlabel("evidence over what is needed to fire")
    panel.set_ylabel("share of examples (%)")
    panel.set_title(f"{skill}: all frames and surroundings, AUROC {calibration.auroc:.4f}", fontsize=10)
    panel.legend(fontsize=8)
    return png(figure)


def _rates(calibration: SpanCalibration, skill: str) -> bytes:
    rows = calibration.rows
    figure, panels = new_figure(1, 2, 5.0, 1.2 + 0.22 * len(rows))
    sides = (("recall", FORGET_COLOUR, (0.5, 1.01)), ("false_abstention", RETAIN_COLOUR, (-0.002, 0.1)))
    for panel, (field, colour, limits) in zip(panels, sides, strict=True):
        for place, row in enumerate(reversed(rows)):
            rate: Rate | None = getattr(row, field)
            if rate is not None:
                panel.plot([rate.low, rate.high], [place, place], color=colour, linewidth=1)
                panel.plot([rate.rate], [place], marker="o", color=colour, markersize=4)
        panel.set_yticks(range(len(rows)), [row.name for row in reversed(rows)], fontsize=7)
        panel.set_xlim(*limits)
        panel.set_title(f"{skill}: {field.replace('_', ' ')}", fontsize=10)
        panel.grid(alpha=0.3)
    return png(figure)
