"""Chooses the toy halving's neurons."""

from collections.abc import Sequence

import torch
from torch import Tensor

from guards.calibration.activations import Activations, Pass, Tokens
from guards.calibration.canary_choice import choose_canaries
from guards.calibration.corpus import encode_corpora, resolve_frames
from guards.calibration.finished import Calibration, make_record
from guards.calibration.sources import Source
from guards.model.sites import Site
from tests.toys import HALVING
from tests.toys.halving.guard import HalvingGuard
from tests.toys.halving.options import HalvingOptions


def sites(_: HalvingOptions) -> tuple[Site, ...]:
    return (Site.KEY,)


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: HalvingOptions
) -> Calibration:
    frames = resolve_frames(options, model.codec)
    corpora = encode_corpora(forget, retain, frames, model.codec, model.max_tokens)
    layer, sizes = model.identity.layers - 1, []
    for corpus in corpora:
        size_F = torch.zeros(model.width(Site.KEY))

        def consume(_: int, x_TF: Tensor, __: Tensor, into_F: Tensor = size_F) -> None:
            into_F += x_TF.float().abs().sum(dim=0).cpu()

        model.stream(Pass(Site.KEY, (layer,), Tokens.ALL), corpus.encoded[frames[0]], consume)
        sizes.append(size_F / size_F.sum())
    guard = HalvingGuard(layer, (sizes[0] - sizes[1]).topk(options.neurons).indices.sort().values)
    return Calibration(
        method=HALVING,
        guard=guard,
        identity=model.identity,
        record=make_record(model, frames, corpora, ["a toy"]),
        canaries=choose_canaries(model, HALVING, guard, *corpora, frames),
    )
