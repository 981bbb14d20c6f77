"""The two figures of ESU that an evaluation redraws, as PNGs. Needs matplotlib: the extra `skillguard[plots]`."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import EvaluationError
from server.evaluation.cells import judged_labels
from server.evaluation.results import skill_name

LANGUAGES = ("en", "de", "es", "hi", "zh", "vi", "ar")
"""MLQA's, in the order of ESU's figure 5."""
_COLOURS = (
    "#2b6ca3",
    "#c1440e",
    "#4f8f4a",
    "#8d6bb1",
    "#b8892b",
    "#4aa6a6",
    "#a34a6f",
    "#6b6b6b",
    "#7ea3cc",
    "#d99c7a",
)


def require_matplotlib() -> None:
    """Raises EvaluationError with the pip command when plots cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise EvaluationError("--plots needs matplotlib: pip install 'skillguard[plots]'") from error


def figures(results: Mapping[str, Any]) -> dict[str, bytes]:
    """PNGs by file name."""
    require_matplotlib()
    found = {"relative.png": relative_bars(results)} if judged_labels(results) else {}
    rows, columns = matrix_of(results)
    if rows and len(columns) > 1:
        found["languages.png"] = language_matrix(results, rows, columns)
    return found


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def relative_bars(results: Mapping[str, Any]) -> bytes:
    """ESU's figure 4: a group of bars for each guard, a bar for each skill, relative performance with its interval."""
    from matplotlib.figure import Figure

    labels = judged_labels(results)
    guards = results["guards"]
    width = 0.8 / len(labels)
    figure = Figure(figsize=(max(6.0, 1.6 + 0.28 * len(guards) * (len(labels) + 1)), 4.2), layout="constrained")
    panel = figure.subplots()
    for index, label in enumerate(labels):
        at = [group - 0.4 + width * (index + 0.5) for group in range(len(guards))]
        found = [guard["suites"][label]["relative"] for guard in guards]
        known = [(x, cell) for x, cell in zip(at, found, strict=True) if cell is not None]
        values = [cell["value"] for _, cell in known]
        below = [max(0.0, cell["value"] - cell["low"]) for _, cell in known]
        above = [max(0.0, cell["high"] - cell["value"]) for _, cell in known]
        panel.bar(
            [x for x, _ in known],
            values,
            width,
            label=label,
            color=_COLOURS[index % len(_COLOURS)],
            yerr=[below, above],
            error_kw={"elinewidth": 0.8, "capsize": 1.5, "ecolor": "#222222"},
        )
    panel.axhline(1.0, color="grey", linewidth=0.8, linestyle=":")
    turned: dict[str, Any] = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"} if len(guards) > 4 else {}
    panel.set_xticks(range(len(guards)), [guard["guard"] for guard in guards], **turned)
    panel.set_ylabel("relative performance")
    panel.set_ylim(bottom=0)
    panel.set_title(f"{results['settings']['model']}: accuracy with a guard over accuracy without, 95 %", fontsize=10)
    figure.legend(fontsize=8, ncols=min(len(labels), 5), loc="outside lower center")
    return _png(figure)


def matrix_of(results: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Guards whose own suites are languages, and the suites that are, both in ESU's order."""
    columns = {skill_name(suite["skill"]): suite["label"] for suite in results["suites"]}
    ordered = [columns[language] for language in LANGUAGES if language in columns]
    rows = [
        guard["guard"]
        for label in ordered
        for guard in results["guards"]
        if guard["own"] and guard["own"][0] == label and set(guard["own"]) <= set(ordered)
    ]
    return rows, ordered


def drops(results: Mapping[str, Any], rows: Sequence[str], columns: Sequence[str]) -> list[list[float]]:
    """Relative drop, 1 - relative performance, by row and column; NaN where it is not defined."""
    guards = {guard["guard"]: guard for guard in results["guards"]}
    found = [[guards[row]["suites"][column]["relative"] for column in columns] for row in rows]
    return [[float("nan") if cell is None else 1 - cell["value"] for cell in line] for line in found]


def language_matrix(results: Mapping[str, Any], rows: Sequence[str], columns: Sequence[str]) -> bytes:
    """ESU's figure 5: row the language unlearned, column the language tested, relative drop in each cell."""
    return share_matrix(drops(results, rows, columns), rows, columns, "relative drop")


def share_matrix(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str) -> bytes:
    """Shares from 0 to 1 in the layout of ESU's figure 5; NaN is drawn as a dash."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 + 0.75 * len(columns), 1.8 + 0.55 * len(rows)), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            shown = "-" if value != value else f"{value:.2f}"
            panel.text(x, y, shown, ha="center", va="center", fontsize=9, color="white" if value > 0.6 else "black")
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(rows)), rows)
    panel.set_xlabel("language tested")
    panel.set_ylabel("language unlearned")
    panel.set_title(title, fontsize=10)
    figure.colorbar(image, ax=panel)
    return _png(figure)
