"""How a calibration of probes is shown: as one over spans, with what each layer's probe separates."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from guards.calibration.drawing import BINS, FORGET_COLOUR, TAU_COLOUR, new_figure, png
from guards.methods.probe.fit import Measured, RankedProbes
from guards.methods.spans import shown
from guards.methods.spans.calibrate import SpanCalibration
from guards.methods.spans.guard import LayerWeights

table = shown.table


def cosines(terms: Sequence[LayerWeights]) -> Tensor:
    """Of each two layers' directions, float32 [L, L]."""
    unit_LF = torch.nn.functional.normalize(torch.stack([each.weight_F for each in terms]), dim=1)
    return unit_LF @ unit_LF.T


def _probes(calibration: SpanCalibration) -> RankedProbes:
    assert isinstance(calibration.directions, RankedProbes)
    return calibration.directions


def report(calibration: SpanCalibration) -> dict[str, Any]:
    """That of a guard over spans, and every probe that was looked at."""
    return {**shown.report(calibration), **probes_report(_probes(calibration), calibration.chosen.layers)}


def probes_report(probes: RankedProbes, chosen: Sequence[int]) -> dict[str, Any]:
    """What each probe separates, which layers were chosen, and how alike directions are."""
    return {
        "probes": [
            {
                "layer": each.layer,
                "third": each.third,
                "log_auroc": each.log_auroc,
                "auroc": each.auroc,
                "chosen": each.layer in chosen,
            }
            for each in probes.measured
        ],
        "cosines": [[round(each, 4) for each in row] for row in cosines([p.term for p in probes.probes]).tolist()],
    }


def plots(calibration: SpanCalibration, skill: str, *_: object) -> Mapping[str, bytes]:
    """Those of a guard over spans, and the probes by layer."""
    probes = _probes(calibration)
    terms = [each.term for each in probes.probes]
    return {
        **shown.plots(calibration, skill),
        "probes.png": probes_figure(terms, probes.measured, calibration.chosen.layers, skill),
    }


def probes_figure(
    terms: Sequence[LayerWeights], measured: Sequence[Measured], chosen: Sequence[int], skill: str
) -> bytes:
    """What each layer's probe separates, how alike their directions are, and how large their weights."""
    figure, (areas, alike, weights) = new_figure(1, 3, 4.6, 3.8)
    layers = [each.layer for each in measured]
    areas.plot(layers, [each.auroc for each in measured], color=TAU_COLOUR, marker=".", label="AUROC")
    found = [each for each in measured if each.log_auroc is not None]
    taken = [each for each in found if each.layer in chosen]
    for of, marker, line, label in ((found, ".", "-", "log-AUROC"), (taken, "o", "", "chosen")):
        places = [each.layer for each in of], [each.log_auroc for each in of]
        areas.plot(*places, color=FORGET_COLOUR, marker=marker, linestyle=line, label=label)
    areas.set_xlabel("layer")
    areas.set_title(f"{skill}: probes on held-out windows", fontsize=10)
    areas.legend(fontsize=8)
    areas.grid(alpha=0.3)
    figure.colorbar(draw_cosines(alike, terms), ax=alike, fraction=0.046)
    draw_weights(weights, terms)
    return png(figure)


def draw_cosines(panel: Any, terms: Sequence[LayerWeights]) -> Any:
    """How alike layers' directions are; what a bar of colours is made for."""
    image = panel.imshow(cosines(terms).tolist(), vmin=-1, vmax=1, cmap="RdBu_r")
    names = [str(each.layer) for each in terms]
    panel.set_xticks(range(len(names)), names, fontsize=6)
    panel.set_yticks(range(len(names)), names, fontsize=6)
    panel.set_title("cosine of layers' directions", fontsize=10)
    return image


def draw_weights(panel: Any, terms: Sequence[LayerWeights]) -> None:
    """How large the weights of each layer's direction are, over their root mean square."""
    for each in terms:
        scaled_F = each.weight_F / each.weight_F.square().mean().sqrt()
        panel.hist(scaled_F.tolist(), bins=BINS, histtype="step", density=True, label=str(each.layer))
    panel.set_yscale("log")
    panel.set_xlabel("weight over its root mean square")
    panel.set_title("weights by layer", fontsize=10)
    panel.legend(fontsize=6, ncols=2)
