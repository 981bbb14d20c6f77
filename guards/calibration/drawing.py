"""Drawing PNGs about a calibration. Needs matplotlib: the extra `skillguard[plots]`."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from guards.errors import CalibrationError

FORGET_COLOUR, RETAIN_COLOUR, TAU_COLOUR = "#c1440e", "#2b6ca3", "#222222"
BINS = 60


def require_matplotlib() -> None:
    """Raises CalibrationError with the pip command when plots cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise CalibrationError("`plots` needs matplotlib: pip install 'skillguard[plots]'") from error


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure of rows * columns panels, each of a width and height in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def png(figure: Any) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def frame_label(frame: str) -> str:
    """A frame as a title; `$` would start mathematics."""
    shown = frame.replace("\n", "\\n").replace("$", r"\$")
    return f"frame “{shown}”"


def neurons_by_layer(counts: Sequence[int], skill: str, done: str) -> bytes:
    """How many neurons of each layer were chosen; `done` says what for."""
    figure, (panel,) = new_figure(1, 1, 7.0, 3.6)
    panel.bar(range(len(counts)), counts, color=FORGET_COLOUR)
    panel.set_xlabel("layer")
    panel.set_ylabel(f"{done} neurons")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_title(f"{skill}: {sum(counts)} {done} neurons by layer", fontsize=10)
    panel.grid(axis="y", alpha=0.3)
    return png(figure)


def lines(values: Mapping[str, Sequence[float]], title: str, along: str) -> bytes:
    """Series over their index, each in a panel of its own, since their scales differ."""
    figure, panels = new_figure(1, len(values), 5.5, 3.6)
    for panel, (name, series) in zip(panels, values.items(), strict=True):
        panel.plot(range(len(series)), series, color=FORGET_COLOUR if name == "forget" else RETAIN_COLOUR)
        panel.set_xlabel(along)
        panel.set_title(name, fontsize=10)
        panel.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return png(figure)
