"""A dashboard's panels as a picture, from a Prometheus: what Grafana would show, without Grafana."""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.dashboards.panels import LEVEL, THRESHOLD
from benchmarks.watched.queries import Asked

_ROW_INCHES, _COLUMN_INCHES = 0.42, 0.85
_PERCENT = "percentunit"
_LONGEST = 26
"""Characters of a cell."""


_Found = Sequence[tuple[Asked, Sequence[dict[str, Any]]]]
"""Queries, and of each the series as Prometheus has them."""


def draw(name: str, found: _Found, path: Path) -> None:
    """Writes one dashboard's picture."""
    from matplotlib.figure import Figure

    panels = list({each.title: each.panel for each, _ in found}.values())
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height = 24 * _COLUMN_INCHES, bottom * _ROW_INCHES
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.suptitle(name, fontsize=10, y=1 - 0.1 / height)
    for panel in panels:
        place = panel["gridPos"]
        left, low = place["x"] / 24, 1 - (place["y"] + place["h"]) / bottom
        box = (left + 0.03, low + 0.9 / height, place["w"] / 24 - 0.05, place["h"] / bottom - 1.35 / height)
        axes = figure.add_axes(box)
        axes.set_title(panel["title"], fontsize=8, loc="left")
        axes.tick_params(labelsize=6)
        of = [(each, series) for each, series in found if each.title == panel["title"]]
        _PAINTERS[panel["type"]](axes, panel, of)
    figure.savefig(path, dpi=80)


def _legend(asked: Asked, series: dict[str, Any]) -> str:
    labels = series["metric"]
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), asked.legend)


def _lines(axes: Any, panel: dict[str, Any], of: _Found) -> None:
    custom = panel["fieldConfig"]["defaults"]
    factor = 100 if custom.get("unit") == _PERCENT else 1
    for asked, found in of:
        for series in found:
            legend = _legend(asked, series)
            times = [datetime.fromtimestamp(float(at), UTC) for at, _ in series["values"]]
            values = [factor * float(value) for _, value in series["values"]]
            dashed = legend.endswith((THRESHOLD, "a week ago")) or legend.startswith(LEVEL)
            color = "red" if legend.endswith(THRESHOLD) else "gray" if legend.startswith(LEVEL) else None
            axes.plot(times, values, linestyle="--" if dashed else "-", linewidth=1.2, color=color, label=legend)
    axes.set_ylabel({_PERCENT: "%", "reqps": "a second", "s": "seconds"}.get(custom.get("unit"), ""), fontsize=6)
    low, high = axes.dataLim.intervaly
    top = max(high, custom["custom"].get("axisSoftMax", 0)) or 1
    if "scaleDistribution" in custom["custom"]:
        axes.set_yscale("log")
    else:
        axes.set_ylim(1.05 * min(0, low), 1.05 * top)
    axes.grid(alpha=0.3)
    if not axes.lines:
        _words(axes, ["no data"])
    elif axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, frameon=False)


def _figures(axes: Any, panel: dict[str, Any], of: _Found) -> None:
    mappings = panel["fieldConfig"]["defaults"].get("mappings", [])
    words = {key: shown["text"] for mapping in mappings for key, shown in mapping["options"].items()}
    said = []
    for asked, found in of:
        for series in found:
            value = float(series["value"][1])
            shown = words.get(f"{value:g}", "-" if math.isnan(value) else f"{value:g}")
            said.append(f"{_legend(asked, series)} {shown}".strip())
    _words(axes, said or ["no data"])


def _rows(axes: Any, panel: dict[str, Any], of: _Found) -> None:
    columns = panel["transformations"][0]["options"]["include"]["names"]
    cells = [[str(each["metric"].get(name, ""))[:_LONGEST] for name in columns] for _, found in of for each in found]
    axes.axis("off")
    if not cells:
        _words(axes, ["None."])
        return
    table = axes.table(cells, colLabels=columns, loc="upper left", cellLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(6)


def _density(axes: Any, panel: dict[str, Any], of: _Found) -> None:
    (_, found), *_ = of
    ordered = sorted(found, key=lambda series: float(series["metric"]["le"]))[:-1]
    columns = min((len(series["values"]) for series in ordered), default=0)
    if not columns:
        _words(axes, ["no data"])
        return
    cumulative = [[float(value) for _, value in series["values"][-columns:]] for series in ordered]
    below = [[0.0] * columns, *cumulative[:-1]]
    counts = [[high - low for high, low in zip(*pair, strict=True)] for pair in zip(cumulative, below, strict=True)]
    edges = [0.0, *(float(series["metric"]["le"]) for series in ordered)]
    times = [datetime.fromtimestamp(float(at), UTC) for at, _ in ordered[0]["values"][-columns:]]
    axes.pcolormesh(times, range(len(counts)), counts, cmap="Blues", shading="nearest")
    axes.set_yticks([index - 0.5 for index in range(len(edges))], [f"{edge:g}" for edge in edges])


def _words(axes: Any, said: Sequence[str]) -> None:
    axes.axis("off")
    axes.text(0.02, 0.9, "\n".join(said), fontsize=9, va="top", transform=axes.transAxes)


_PAINTERS = {"timeseries": _lines, "stat": _figures, "table": _rows, "heatmap": _density}
