"""PNGs about a calibration. Needs matplotlib: the extra `skillguard[plots]`."""

import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from guards.calibration.activations import Activations, Tokens
from guards.calibration.corpus import encode_corpora
from guards.calibration.sources import Source, seeded_rank
from guards.errors import CalibrationError
from guards.methods.cube.calibrate import FrameResult, KSDCalibration
from guards.methods.neuron_adjust.calibrate import NeuronAdjustCalibration
from guards.methods.neuron_adjust.guard import LayerStatistics, NeuronAdjustGuard
from guards.methods.pooled.calibrate import PooledCalibration, PooledFrame
from guards.methods.selective_pruning.calibrate import PruneCalibration
from guards.model.sites import Site

FORGET_COLOUR, RETAIN_COLOUR, TAU_COLOUR = "#c1440e", "#2b6ca3", "#222222"
SHOWN_NEURONS = 6
SHOWN_EXAMPLES = 200
"""Examples of each side whose values are drawn; the Gaussians come from all of them."""
BINS = 60


def require_matplotlib() -> None:
    """Raises CalibrationError with the pip command when plots cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise CalibrationError("plots need matplotlib: pip install 'skillguard[plots]'") from error


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _label(frame: str) -> str:
    """A frame as a title; `$` would start mathematics."""
    shown = frame.replace("\n", "\\n").replace("$", r"\$")
    return f"frame “{shown}”"


def _scores(result: KSDCalibration | PooledCalibration, skill: str) -> bytes:
    """Histograms of both sides' scores with tau, one panel per frame."""
    pooled = isinstance(result, PooledCalibration)
    frames: Sequence[FrameResult | PooledFrame] = result.frames
    figure, panels = _figure(len(frames), 1, 8.0, 3.6)
    for panel, frame in zip(panels, frames, strict=True):
        low = float(min(frame.forget_E.min(), frame.retain_E.min()))
        high = float(max(frame.forget_E.max(), frame.retain_E.max()))
        low, high = (low - 0.05, high + 0.05) if pooled else (low * 0.95, high * 1.05)
        edges = _edges(low, high, logarithmic=not pooled)
        sides = (("forget", frame.forget_E, FORGET_COLOUR), ("retain", frame.retain_E, RETAIN_COLOUR))
        for name, scores_E, colour in sides:
            weight = [100.0 / scores_E.numel()] * scores_E.numel()
            label = f"{name}, {scores_E.numel()} examples"
            panel.hist(scores_E.tolist(), bins=edges, weights=weight, color=colour, alpha=0.6, label=label)
        panel.axvline(frame.tau, color=TAU_COLOUR, linestyle="--", label=f"tau = {frame.tau:.3g}")
        panel.axvspan(low, frame.tau, color=TAU_COLOUR, alpha=0.06, label="guard fires")
        if not pooled:
            panel.set_xscale("log")
            _plain_log_ticks(panel, low, high)
        panel.set_xlim(low, high)
        panel.set_xlabel("score  0: mean of forget, 1: of retain" if pooled else "score  max |x - mean| / deviation")
        panel.set_ylabel("share of examples (%)")
        panel.set_title(
            f"{skill}: {_label(frame.frame)}, {frame.where} — recall "
            f"{frame.recall.rate:.3f}, false abstention {frame.false_abstention.rate:.3f}",
            fontsize=10,
        )
        panel.legend(fontsize=8)
    return _png(figure)


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


def _roc_points(frame: FrameResult | PooledFrame) -> tuple[list[float], list[float]]:
    """False-abstention rate and recall as tau rises over every score."""
    taus = torch.cat([frame.forget_E, frame.retain_E]).sort().values
    retain = torch.searchsorted(frame.retain_E.sort().values, taus, right=True) / frame.retain_E.numel()
    forget = torch.searchsorted(frame.forget_E.sort().values, taus, right=True) / frame.forget_E.numel()
    return [0.0, *retain.tolist()], [0.0, *forget.tolist()]


def _roc(result: KSDCalibration | PooledCalibration, skill: str) -> bytes:
    """Recall against false abstention; the left panel whole, the right one where guards work."""
    figure, (whole, near) = _figure(1, 2, 5.0, 4.6)
    frames: Sequence[FrameResult | PooledFrame] = result.frames
    for frame in frames:
        false, recall = _roc_points(frame)
        text = f"{_label(frame.frame)}: AUROC {frame.auroc:.4f}"
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
    near.axvline(
        result.options.max_false_abstention, color="grey", linewidth=0.8, linestyle=":", label="cap on false abstention"
    )
    for panel, title in ((whole, f"{skill}: ROC on held-out examples"), (near, "the same, enlarged (dot: tau)")):
        panel.set_xlabel("false-abstention rate (retain)")
        panel.set_ylabel("recall (forget)")
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
    near.legend(fontsize=8, loc="lower right")
    return _png(figure)


def _layers(result: KSDCalibration, skill: str) -> bytes:
    """Separation of every layer's cube, and what it would catch under the cap."""
    figure, (separation, caught) = _figure(1, 2, 5.0, 4.2)
    for frame in result.frames:
        layers = [layer.fit.cube.layer for layer in frame.layers]
        at = layers.index(frame.chosen.fit.cube.layer)
        columns = (
            (separation, [layer.reported_auroc for layer in frame.layers]),
            (caught, [layer.recall.rate for layer in frame.layers]),
        )
        for panel, values in columns:
            (line,) = panel.plot(layers, values, marker=".", label=_label(frame.frame))
            panel.plot(layers[at], values[at], marker="o", markersize=10, fillstyle="none", color=line.get_color())
            panel.set_xlabel("layer (ring: chosen)")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.grid(alpha=0.3)
    separation.set_ylabel("AUROC, forget against retain")
    separation.set_title(f"{skill}: separation by layer", fontsize=10)
    caught.set_ylabel("recall under the false-abstention cap")
    caught.set_title("what each layer's cube would catch", fontsize=10)
    caught.legend(fontsize=8)
    return _png(figure)


def _candidates(result: PooledCalibration, skill: str) -> bytes:
    """Separation of every set of layers, and what it would catch."""
    figure, (separation, caught) = _figure(1, 2, 5.0, 4.2)
    names = [", ".join(map(str, each.layers)) for each in result.candidates]
    colours = [TAU_COLOUR if each is result.chosen else RETAIN_COLOUR for each in result.candidates]
    for panel, values in (
        (separation, [each.reported_auroc for each in result.candidates]),
        (caught, [each.recall.rate for each in result.candidates]),
    ):
        for name, value, colour in zip(names, values, colours, strict=True):
            panel.plot([name], [value], marker="o", color=colour)
        panel.set_xlabel("layers (black: chosen)")
        panel.grid(alpha=0.3)
    separation.set_ylabel("AUROC, forget against retain")
    separation.set_title(f"{skill}: separation by layers", fontsize=10)
    caught.set_ylabel("recall")
    caught.set_title("what each set of layers would catch", fontsize=10)
    return _png(figure)


def ksd_plots(result: KSDCalibration | PooledCalibration, skill: str) -> dict[str, bytes]:
    """PNGs by file name: score distributions with tau, ROC, and separation by layer."""
    require_matplotlib()
    layers = _candidates(result, skill) if isinstance(result, PooledCalibration) else _layers(result, skill)
    return {"scores.png": _scores(result, skill), "roc.png": _roc(result, skill), "layers.png": layers}


def _strongest(guard: NeuronAdjustGuard) -> list[tuple[int, int]]:
    """(layer, index among its selected neurons) of the largest differences in mean."""
    ranked = [
        (float(statistics.forget_mean_S[i] - statistics.retain_mean_S[i]), layer, i)
        for layer, statistics in guard.layers_statistics.items()
        for i in range(statistics.neurons_S.numel())
    ]
    return [(layer, i) for _, layer, i in sorted(ranked, reverse=True)[:SHOWN_NEURONS]]


def _values(
    model: Activations, examples: Sequence[tuple[int, ...]], neurons: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Pre-activations of single neurons (layer, neuron) over all tokens of the examples."""
    kept: dict[tuple[int, int], list[Tensor]] = {at: [] for at in neurons}

    def consume(layer: int, x_TF: Tensor, _: Tensor) -> None:
        for at in kept:
            if at[0] == layer:
                kept[at].append(x_TF[:, at[1]].float().cpu())

    layers = sorted({layer for layer, _ in neurons})
    model.stream(Site.PRE_ACTIVATION, layers, examples, consume, tokens=Tokens.ALL, batch_tokens=None)
    return [torch.cat(kept[at]) for at in neurons]


def _gaussian(panel: Any, edges: Tensor, mean: float, deviation: float, colour: str, name: str) -> None:
    density = (-0.5 * ((edges - mean) / deviation).square()).exp() / (deviation * math.sqrt(2 * math.pi))
    panel.plot(edges.tolist(), density.tolist(), color=colour, label=name)


def _distributions(
    model: Activations, result: NeuronAdjustCalibration, sides: tuple[Sequence[Source], Sequence[Source]], skill: str
) -> bytes:
    guard = result.guard
    assert isinstance(guard, NeuronAdjustGuard)
    frame = result.record.frames[0]
    corpora = encode_corpora(*sides, (frame,), model.codec, model.max_tokens)
    chosen = _strongest(guard)
    places = [(layer, int(guard.layers_statistics[layer].neurons_S[i])) for layer, i in chosen]
    forget, retain = (
        _values(model, [corpus.encoded[frame][e] for e in seeded_rank(corpus.texts, 0)[:SHOWN_EXAMPLES]], places)
        for corpus in corpora
    )
    rows = -(-len(chosen) // 3)
    figure, panels = _figure(rows, min(3, len(chosen)), 4.2, 3.0)
    for panel, (layer, i), place, f, r in zip(panels, chosen, places, forget, retain, strict=False):
        statistics: LayerStatistics = guard.layers_statistics[layer]
        both = torch.cat([f, r])
        edges = torch.linspace(float(both.quantile(0.001)), float(both.quantile(0.999)), BINS + 1)
        for values, colour, name, mean_S, std_S in (
            (f, FORGET_COLOUR, "forget", statistics.forget_mean_S, statistics.forget_std_S),
            (r, RETAIN_COLOUR, "retain", statistics.retain_mean_S, statistics.retain_std_S),
        ):
            panel.hist(values.tolist(), bins=edges.tolist(), density=True, color=colour, alpha=0.45, label=name)
            _gaussian(panel, edges, float(mean_S[i]), float(std_S[i]), colour, f"{name} Gaussian")
        panel.set_title(f"layer {layer}, neuron {place[1]}", fontsize=10)
        panel.set_xlabel("pre-activation")
        panel.set_ylabel("density")
    for panel in panels[len(chosen) :]:
        panel.set_visible(False)
    panels[0].legend(fontsize=7)
    figure.suptitle(f"{skill}: adjusted neurons with the largest difference in mean, {_label(frame)}", fontsize=11)
    return _png(figure)


def _by_layer(counts: Sequence[int], skill: str, done: str) -> bytes:
    """How many neurons of each layer were chosen; `done` says what for."""
    figure, (panel,) = _figure(1, 1, 7.0, 3.6)
    panel.bar(range(len(counts)), counts, color=FORGET_COLOUR)
    panel.set_xlabel("layer")
    panel.set_ylabel(f"{done} neurons")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_title(f"{skill}: {sum(counts)} {done} neurons by layer", fontsize=10)
    panel.grid(axis="y", alpha=0.3)
    return _png(figure)


def neuron_adjust_plots(
    model: Activations,
    result: NeuronAdjustCalibration,
    forget: Sequence[Source],
    retain: Sequence[Source],
    skill: str,
) -> dict[str, bytes]:
    """PNGs by file name: neurons by layer, and the distributions of a few of them (one more pass on a few examples)."""
    require_matplotlib()
    return {
        "neurons.png": _by_layer(result.neurons_by_layer, skill, "adjusted"),
        "distributions.png": _distributions(model, result, (forget, retain), skill),
    }


def prune_plots(result: PruneCalibration, skill: str) -> dict[str, bytes]:
    """PNGs by file name: pruned neurons by layer, attention's only where any is pruned."""
    require_matplotlib()
    plots = {"neurons.png": _by_layer(result.feed_forward_by_layer, skill, "pruned feed-forward")}
    if any(result.attention_by_layer):
        plots["attention.png"] = _by_layer(result.attention_by_layer, skill, "pruned attention")
    return plots
