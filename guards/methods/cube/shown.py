"""How a calibration of cubes is shown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from guards.calibration.drawing import (
    BINS,
    FORGET_COLOUR,
    RETAIN_COLOUR,
    TAU_COLOUR,
    frame_label,
    new_figure,
    png,
)
from guards.calibration.shown import ShownTable, interval_text
from guards.methods.cube.calibrate import CubeCalibration, FrameResult, LayerResult


def table(calibration: CubeCalibration) -> ShownTable:
    """One line a frame."""
    rows = tuple(
        (
            repr(each.frame),
            str(each.chosen.fit.cube.layer),
            f"{each.tau:.3f}",
            interval_text(each.recall),
            interval_text(each.false_abstention),
            f"{each.chosen.reported_auroc:.4f}",
        )
        for each in calibration.frames
    )
    headings = ("frame", "layer", "tau", "recall", "false abstention", "AUROC")
    return ShownTable(headings, rows, "held-out rates with 95 % intervals")


def report(calibration: CubeCalibration) -> dict[str, Any]:
    """By frame, with every layer that was looked at."""
    return {"frames": [_frame(result) for result in calibration.frames]}


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
        "recall": result.recall.model_dump(),
        "false_abstention": result.false_abstention.model_dump(),
    }


def _frame(result: FrameResult) -> dict[str, Any]:
    return {
        "frame": result.frame,
        "recall": result.recall.model_dump(),
        "false_abstention": result.false_abstention.model_dump(),
        "false_abstention_by_source": {name: rate.model_dump() for name, rate in result.sources.items()},
        "auroc": result.chosen.reported_auroc,
        "layer": result.chosen.fit.cube.layer,
        "tau": result.tau,
        "k": result.chosen.fit.cube.k,
        "layers": [_layer(layer) for layer in result.by_layer],
    }


def plots(calibration: CubeCalibration, skill: str, *_: object) -> Mapping[str, bytes]:
    """Score distributions with tau, ROC, and separation by layer."""
    return {
        "scores.png": _scores(calibration.frames, skill),
        "roc.png": _roc(calibration.frames, skill, calibration.options.max_false_abstention),
        "layers.png": _layers(calibration, skill),
    }


def _scores(frames: Sequence[FrameResult], skill: str) -> bytes:
    """Histograms of both sides' scores with tau, one panel per frame."""
    figure, panels = new_figure(len(frames), 1, 8.0, 3.6)
    for panel, frame in zip(panels, frames, strict=True):
        low = 0.95 * float(min(frame.forget_E.min(), frame.retain_E.min()))
        high = 1.05 * float(max(frame.forget_E.max(), frame.retain_E.max()))
        edges = torch.logspace(math.log10(low), math.log10(high), BINS + 1).tolist()
        sides = (("forget", frame.forget_E, FORGET_COLOUR), ("retain", frame.retain_E, RETAIN_COLOUR))
        for name, scores_E, colour in sides:
            weight = [100.0 / scores_E.numel()] * scores_E.numel()
            label = f"{name}, {scores_E.numel()} examples"
            panel.hist(scores_E.tolist(), bins=edges, weights=weight, color=colour, alpha=0.6, label=label)
        panel.axvline(frame.tau, color=TAU_COLOUR, linestyle="--", label=f"tau = {frame.tau:.3g}")
        panel.axvspan(low, frame.tau, color=TAU_COLOUR, alpha=0.06, label="guard fires")
        panel.set_xscale("log")
        _plain_log_ticks(panel, low, high)
        panel.set_xlim(low, high)
        panel.set_xlabel("score  max |x - mean| / deviation")
        panel.set_ylabel("share of examples (%)")
        panel.set_title(
            f"{skill}: {frame_label(frame.frame)}, layer {frame.chosen.fit.cube.layer} — recall "
            f"{frame.recall.rate:.3f}, false abstention {frame.false_abstention.rate:.3f}",
            fontsize=10,
        )
        panel.legend(fontsize=8)
    return png(figure)


def _plain_log_ticks(panel: Any, low: float, high: float) -> None:
    """Ticks such as 5, 10, 20 instead of powers of ten, which a narrow range may hold one of."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks = [step * 10.0**power for power in range(-4, 9) for step in (1, 1.5, 2, 3, 5, 7)]
    inside = [tick for tick in ticks if low <= tick <= high]
    inside = inside[:: 1 + len(inside) // 12]
    panel.xaxis.set_major_locator(FixedLocator(inside))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(inside, [f"{tick:g}" for tick in inside])


def _roc_points(frame: FrameResult) -> tuple[list[float], list[float]]:
    """False-abstention rate and recall as tau rises over every score."""
    taus = torch.cat([frame.forget_E, frame.retain_E]).sort().values
    retain = torch.searchsorted(frame.retain_E.sort().values, taus, right=True) / frame.retain_E.numel()
    forget = torch.searchsorted(frame.forget_E.sort().values, taus, right=True) / frame.forget_E.numel()
    return [0.0, *retain.tolist()], [0.0, *forget.tolist()]


def _roc(frames: Sequence[FrameResult], skill: str, cap: float) -> bytes:
    """Recall against false abstention; the left panel whole, the right one where guards work."""
    figure, (whole, near) = new_figure(1, 2, 5.0, 4.6)
    for frame in frames:
        false, recall = _roc_points(frame)
        text = f"{frame_label(frame.frame)}: AUROC {frame.chosen.reported_auroc:.4f}"
        for panel in (whole, near):
            (line,) = panel.step(false, recall, where="post", label=text)
            own = (
                float((frame.retain_E <= frame.tau).float().mean()),
                float((frame.forget_E <= frame.tau).float().mean()),
            )
            panel.plot(*own, marker="o", color=line.get_color(), markeredgecolor=TAU_COLOUR, linestyle="none")
    whole.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    near.set_xlim(-0.002, 0.1)
    near.set_ylim(0.5, 1.01)
    near.axvline(cap, color="grey", linewidth=0.8, linestyle=":", label="cap on false abstention")
    for panel, title in ((whole, f"{skill}: ROC on held-out examples"), (near, "the same, enlarged (dot: tau)")):
        panel.set_xlabel("false-abstention rate (retain)")
        panel.set_ylabel("recall (forget)")
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
    near.legend(fontsize=8, loc="lower right")
    return png(figure)


def _layers(calibration: CubeCalibration, skill: str) -> bytes:
    """Separation of every layer's cube, and what it would catch under the cap."""
    figure, (separation, caught) = new_figure(1, 2, 5.0, 4.2)
    separation.set_ylabel("AUROC, forget against retain")
    separation.set_title(f"{skill}: separation by layer", fontsize=10)
    for frame in calibration.frames:
        layers = [layer.fit.cube.layer for layer in frame.by_layer]
        at = layers.index(frame.chosen.fit.cube.layer)
        columns = (
            (separation, [layer.reported_auroc for layer in frame.by_layer]),
            (caught, [layer.recall.rate for layer in frame.by_layer]),
        )
        for panel, values in columns:
            (line,) = panel.plot(layers, values, marker=".", label=frame_label(frame.frame))
            panel.plot(layers[at], values[at], marker="o", markersize=10, fillstyle="none", color=line.get_color())
            panel.set_xlabel("layer (ring: chosen)")
            panel.grid(visible=True, alpha=0.3)
            panel.xaxis.get_major_locator().set_params(integer=True)
    caught.set_ylabel("recall under the false-abstention cap")
    caught.set_title("what each layer's cube would catch", fontsize=10)
    caught.legend(fontsize=8)
    return png(figure)
