"""Fits the toy probe: the difference of the sides' mean tokens, and a line between the sides' texts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from guards.calibration.activations import Activations, Pass, Tokens
from guards.calibration.canary_choice import choose_canaries
from guards.calibration.corpus import Corpus, encode_corpora, resolve_frames
from guards.calibration.finished import Calibration, make_record
from guards.calibration.sources import Source
from guards.model.sites import Site
from tests.toys import PROBE
from tests.toys.probe.guard import ProbeGuard
from tests.toys.probe.options import ProbeOptions


def sites(_: ProbeOptions) -> tuple[Site, ...]:
    return (Site.RESIDUAL,)


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: ProbeOptions
) -> Calibration:
    frames = resolve_frames(options, model.codec)
    corpora = encode_corpora(forget, retain, frames, model.codec, model.max_tokens)
    layers, frame = (options.first, options.second), frames[0]

    def tokens(corpus: Corpus) -> tuple[Tensor, Tensor]:
        """Every token's vectors of both layers [L, T, D], and whose they are [T]."""
        kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        whose: list[Tensor] = []

        def consume(layer: int, x_TD: Tensor, example_T: Tensor) -> None:
            kept[layer].append(x_TD.float().cpu())
            if layer == layers[0]:
                whose.append(example_T.cpu())

        model.stream(Pass(Site.RESIDUAL, layers, Tokens.ALL), corpus.encoded[frame], consume)
        return torch.stack([torch.cat(kept[layer]) for layer in layers]), torch.cat(whose)

    (forget_LTD, forget_T), (retain_LTD, retain_T) = map(tokens, corpora)
    weight_LD = retain_LTD.mean(dim=1) - forget_LTD.mean(dim=1)

    def least(x_LTD: Tensor, example_T: Tensor) -> Tensor:
        score_T = torch.einsum("ltd,ld->t", x_LTD, weight_LD)
        return torch.full((int(example_T.max()) + 1,), torch.inf).scatter_reduce_(0, example_T, score_T, "amin")

    ends = least(forget_LTD, forget_T).quantile(0.9), least(retain_LTD, retain_T).quantile(0.1)
    scale = 2 / float(ends[1] - ends[0])
    guard = ProbeGuard(layers, weight_LD * scale, 1 - scale * float(ends[0] + ends[1]) / 2)
    return Calibration(
        method=PROBE,
        guard=guard,
        identity=model.identity,
        record=make_record(model, frames, corpora, ["a toy"]),
        canaries=choose_canaries(model, PROBE, guard, *corpora, frames),
    )
