"""What the calibration of any detector is shown as: a table, score distributions, and a ROC curve."""

from collections.abc import Sequence
from typing import Any

import torch

from guards.artifact.manifest import Rate
from guards.calibration.detector_job import DetectorFrame, layers_text
from guards.calibration.drawing import (
    BINS,
    FORGET_COLOUR,
    RETAIN_COLOUR,
    TAU_COLOUR,
    frame_label,
    new_figure,
    png,
)
from guards.calibration.shown import ShownTable


def interval_text(rate: Rate) -> str:
    """A rate with its interval."""
    return f"{rate.rate:.3f} [{rate.low:.3f} {rate.high:.3f}]"


def detector_table(frames: Sequence[DetectorFrame]) -> ShownTable:
    """One line a frame."""
    rows = tuple(
        (
            repr(each.frame),
            ", ".join(map(str, each.layers)),
            f"{each.tau:.3f}",
            interval_text(each.recall),
            interval_text(each.false_abstention),
            f"{each.auroc:.4f}",
        )
        for each in frames
    )
    headings = ("frame", "layers", "tau", "recall", "false abstention", "AUROC")
    return ShownTable(headings, rows, "held-out rates with 95 % intervals")


def rates_report(result: DetectorFrame) -> dict[str, Any]:
    """What the report says of every detector's frame."""
    return {
        "frame": result.frame,
        "recall": result.recall.model_dump(),
        "false_abstention": result.false_abstention.model_dump(),
        "false_abstention_by_source": {name: rate.model_dump() for name, rate in result.sources.items()},
        "auroc": result.auroc,
    }


def score_plot(frames: Sequence[DetectorFrame], skill: str, axis: str, *, logarithmic: bool) -> bytes:
    """Histograms of both sides' scores with tau, one panel per frame; `axis` names the score."""
    figure, panels = new_figure(len(frames), 1, 8.0, 3.6)
    for panel, frame in zip(panels, frames, strict=True):
        low = float(min(frame.forget_E.min(), frame.retain_E.min()))
        high = float(max(frame.forget_E.max(), frame.retain_E.max()))
        low, high = (low * 0.95, high * 1.05) if logarithmic else (low - 0.05, high + 0.05)
        edges = _edges(low, high, logarithmic=logarithmic)
        sides = (("forget", frame.forget_E, FORGET_COLOUR), ("retain", frame.retain_E, RETAIN_COLOUR))
        for name, scores_E, colour in sides:
            weight = [100.0 / scores_E.numel()] * scores_E.numel()
            label = f"{name}, {scores_E.numel()} examples"
            panel.hist(scores_E.tolist(), bins=edges, weights=weight, color=colour, alpha=0.6, label=label)
        panel.axvline(frame.tau, color=TAU_COLOUR, linestyle="--", label=f"tau = {frame.tau:.3g}")
        panel.axvspan(low, frame.tau, color=TAU_COLOUR, alpha=0.06, label="guard fires")
        if logarithmic:
            panel.set_xscale("log")
            _plain_log_ticks(panel, low, high)
        panel.set_xlim(low, high)
        panel.set_xlabel(axis)
        panel.set_ylabel("share of examples (%)")
        panel.set_title(
            f"{skill}: {frame_label(frame.frame)}, {layers_text(frame.layers)} — recall "
            f"{frame.recall.rate:.3f}, false abstention {frame.false_abstention.rate:.3f}",
            fontsize=10,
        )
        panel.legend(fontsize=8)
    return png(figure)


def _edges(low: float, high: float, *, logarithmic: bool) -> list[float]:
    if not logarithmic:
        return torch.linspace(low, high, BINS + 1).tolist()
    return torch.logspace(torch.tensor(low).log10(), torch.tensor(high).log10(), BINS + 1).tolist()


def _plain_log_ticks(panel: Any, low: float, high: float) -> None:
    """Ticks such as 5, 10, 20 instead of powers of ten, which a narrow range may hold one of."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks = [step * 10.0**power for power in range(-4, 9) for step in (1, 1.5, 2, 3, 5, 7)]
    inside = [tick for tick in ticks if low <= tick <= high]
    inside = inside[:: 1 + len(inside) // 12]
    panel.xaxis.set_major_locator(FixedLocator(inside))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(inside, [f"{tick:g}" for tick in inside])


def _roc_points(frame: DetectorFrame) -> tuple[list[float], list[float]]:
    """False-abstention rate and recall as tau rises over every score."""
    taus = torch.cat([frame.forget_E, frame.retain_E]).sort().values
    retain = torch.searchsorted(frame.retain_E.sort().values, taus, right=True) / frame.retain_E.numel()
    forget = torch.searchsorted(frame.forget_E.sort().values, taus, right=True) / frame.forget_E.numel()
    return [0.0, *retain.tolist()], [0.0, *forget.tolist()]


def roc_plot(frames: Sequence[DetectorFrame], skill: str, cap: float) -> bytes:
    """Recall against false abstention; the left panel whole, the right one where guards work."""
    figure, (whole, near) = new_figure(1, 2, 5.0, 4.6)
    for frame in frames:
        false, recall = _roc_points(frame)
        text = f"{frame_label(frame.frame)}: AUROC {frame.auroc:.4f}"
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


def separation_panels(skill: str, what: str) -> tuple[Any, Any, Any]:
    """A figure with two panels: what separates, and what each would catch."""
    figure, (separation, caught) = new_figure(1, 2, 5.0, 4.2)
    separation.set_ylabel("AUROC, forget against retain")
    separation.set_title(f"{skill}: separation by {what}", fontsize=10)
    for panel in (separation, caught):
        panel.grid(alpha=0.3)
    return figure, separation, caught
