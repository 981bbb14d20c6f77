"""How a calibration of Neuron Adjust is shown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from guards.calibration.activations import Activations, Pass, Tokens
from guards.calibration.corpus import encode_corpora
from guards.calibration.drawing import (
    BINS,
    FORGET_COLOUR,
    RETAIN_COLOUR,
    frame_label,
    neurons_by_layer,
    new_figure,
    png,
)
from guards.calibration.shown import ShownTable
from guards.calibration.sources import Source, seeded_rank
from guards.methods.neuron_adjust.calibrate import NeuronAdjustCalibration
from guards.methods.neuron_adjust.guard import LayerStatistics, NeuronAdjustGuard
from guards.model.sites import Site

SHOWN_NEURONS = 6
SHOWN_EXAMPLES = 200
"""Examples of each side whose values are drawn; the Gaussians come from all of them."""


def table(calibration: NeuronAdjustCalibration) -> ShownTable:
    """One line a layer."""
    counts = calibration.neurons_by_layer
    rows = [(str(layer), str(count)) for layer, count in enumerate(counts)]
    return ShownTable(("layer", "neurons adjusted"), (*rows, ("all", str(sum(counts)))))


def report(calibration: NeuronAdjustCalibration) -> dict[str, Any]:
    """Neurons by layer, and the tokens of each side."""
    return {"neurons_by_layer": list(calibration.neurons_by_layer), "tokens": dict(calibration.tokens)}


def plots(
    calibration: NeuronAdjustCalibration,
    skill: str,
    model: Activations,
    forget: Sequence[Source],
    retain: Sequence[Source],
) -> Mapping[str, bytes]:
    """Neurons by layer, and the distributions of a few of them: one more pass on a few examples."""
    return {
        "neurons.png": neurons_by_layer(calibration.neurons_by_layer, skill, "adjusted"),
        "distributions.png": _distributions(model, calibration, (forget, retain), skill),
    }


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

    layers = tuple(sorted({layer for layer, _ in neurons}))
    model.stream(Pass(Site.PRE_ACTIVATION, layers, Tokens.ALL), examples, consume)
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
    figure, panels = new_figure(rows, min(3, len(chosen)), 4.2, 3.0)
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
    figure.suptitle(f"{skill}: adjusted neurons with the largest difference in mean, {frame_label(frame)}", fontsize=11)
    return png(figure)
