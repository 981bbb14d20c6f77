"""Calibrates Neuron Adjust: one pass per side for the moments of every neuron's pre-activation, over all tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from guards.calibration.activations import Activations
from guards.calibration.corpus import Side, corpus_warnings, encode_corpora, resolve_frames
from guards.calibration.finished import Calibration, Clock, finish
from guards.calibration.having import require_site
from guards.calibration.selection import count_of
from guards.calibration.sides import progress_bar, stream_sides
from guards.calibration.sources import Source
from guards.methods.neuron_adjust.entry import NEURON_ADJUST
from guards.methods.neuron_adjust.guard import Draw, NeuronAdjustFitter
from guards.methods.neuron_adjust.options import NeuronAdjustOptions
from guards.model.sites import Site


@dataclass(frozen=True, kw_only=True)
class NeuronAdjustCalibration(Calibration):
    """A calibration with the number of neurons selected in every layer, and the tokens seen on each side."""

    neurons_by_layer: tuple[int, ...]
    tokens: dict[Side, int]


def sites(_: NeuronAdjustOptions) -> tuple[Site, ...]:
    """What a calibration looks at."""
    return (Site.PRE_ACTIVATION,)


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: NeuronAdjustOptions
) -> NeuronAdjustCalibration:
    """A guard over all layers, with its record and canaries.

    Raises DataError or CalibrationError when the examples or the fraction give no guard, UnsupportedModelError for a
    model with layers that lack the site.
    """
    clock = Clock()
    require_site(model, Site.PRE_ACTIVATION, range(model.identity.layers))
    count_of(options.fraction, model.identity.layers * model.width(Site.PRE_ACTIVATION))  # known before anything is run
    frames = resolve_frames(options, model.codec)
    corpora = encode_corpora(forget, retain, frames, model.codec, model.max_tokens)
    layers = range(model.identity.layers)
    fitter = NeuronAdjustFitter(len(layers), model.width(Site.PRE_ACTIVATION))
    total = {corpus.role: sum(record.tokens for record in corpus.records()) for corpus in corpora}
    clock.step("encode")
    with progress_bar(sum(total.values()), options.progress) as advance:
        stream_sides(model, Site.PRE_ACTIVATION, fitter, corpora, batch_tokens=options.batch_tokens, advance=advance)
    clock.step("fit")
    guard = fitter.finish(options.fraction, draw=Draw(options.draw), seed=options.seed)
    by_layer = tuple(
        guard.layers_statistics[layer].neurons_S.numel() if layer in guard.layers_statistics else 0 for layer in layers
    )
    warnings = corpus_warnings(model, corpora)
    notes = [
        "moments over all tokens, the frame's own included: "
        + ", ".join(f"{role} {tokens}" for role, tokens in total.items()),
        f"neurons selected by layer: {', '.join(map(str, by_layer))}",
    ]
    return finish(
        NeuronAdjustCalibration,
        NEURON_ADJUST,
        guard,
        model,
        frames,
        corpora,
        clock,
        notes=notes,
        warnings=warnings,
        neurons_by_layer=by_layer,
        tokens=total,
    )
