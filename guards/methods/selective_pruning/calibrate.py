"""Calibrates Selective Pruning: in each step one pass per site for every neuron's importance, over all tokens."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from guards.calibration.activations import Activations
from guards.calibration.corpus import Corpus, Side, corpus_warnings, encode_corpora, resolve_frames
from guards.calibration.finished import Calibration, Clock, finish
from guards.calibration.having import require_site
from guards.calibration.selection import count_of
from guards.calibration.sides import Advance, progress_bar, stream_sides
from guards.calibration.sources import Source
from guards.methods.selective_pruning.entry import SELECTIVE_PRUNING
from guards.methods.selective_pruning.guard import Importance, PruningFitter, PruningGuard
from guards.methods.selective_pruning.options import PruningOptions
from guards.model.sites import Site


@dataclass(frozen=True, kw_only=True)
class PruningCalibration(Calibration):
    """A calibration with the number of neurons pruned in every layer, and the tokens seen on each side in a step."""

    feed_forward_by_layer: tuple[int, ...]
    attention_by_layer: tuple[int, ...]
    tokens: dict[Side, int]


def _fit(
    model: Activations, site: Site, corpora: Sequence[Corpus], batch_tokens: int | None, advance: Advance
) -> PruningFitter:
    """Every neuron's importance to both sides, on the model as it is now."""
    fitter = PruningFitter(site, model.identity.layers, model.width(site))
    stream_sides(model, site, fitter, corpora, batch_tokens=batch_tokens, advance=advance)
    return fitter


def _step(
    model: Activations,
    guard: PruningGuard,
    fractions: Mapping[Site, float],
    corpora: Sequence[Corpus],
    batch_tokens: int | None,
    advance: Advance,
) -> PruningGuard:
    """The guard with one step's neurons more, chosen on the model that it acts in."""
    with model.guarded(SELECTIVE_PRUNING, guard) if guard.layers else nullcontext():
        fitters = {site: _fit(model, site, corpora, batch_tokens, advance) for site in fractions}
    pruned = {
        site: fitter.finish(fractions[site], guard.importance, guard.at(site)) for site, fitter in fitters.items()
    }
    return replace(
        guard,
        feed_forward=pruned.get(Site.KEY, guard.feed_forward),
        attention=pruned.get(Site.ATTENTION, guard.attention),
    )


def sites(options: PruningOptions) -> tuple[Site, ...]:
    """What a calibration looks at."""
    return (Site.KEY, Site.ATTENTION) if options.attention_fraction else (Site.KEY,)


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: PruningOptions
) -> PruningCalibration:
    """A guard over all layers, with its record and canaries.

    Raises DataError or CalibrationError when the examples or the fractions give no guard, UnsupportedModelError for a
    model with layers that lack a site.
    """
    clock = Clock()
    fractions = {
        site: fraction
        for site, fraction in ((Site.KEY, options.fraction), (Site.ATTENTION, options.attention_fraction))
        if fraction
    }
    for site in sites(options):
        require_site(model, site, range(model.identity.layers))
    for site, fraction in fractions.items():
        count_of(fraction, model.identity.layers * model.width(site))  # known before anything is run
    frames = resolve_frames(options, model.codec)
    corpora = encode_corpora(forget, retain, frames, model.codec, model.max_tokens)
    total = {corpus.role: sum(record.tokens for record in corpus.records()) for corpus in corpora}
    guard = PruningGuard(
        feed_forward={},
        attention={},
        d_attention=model.width(Site.ATTENTION),
        fraction=options.fraction,
        attention_fraction=options.attention_fraction,
        steps=options.steps,
        importance=Importance(options.importance),
    )
    clock.step("encode")
    with progress_bar(sum(total.values()) * len(fractions) * options.steps, options.progress) as advance:
        for _ in range(options.steps):
            guard = _step(model, guard, fractions, corpora, options.batch_tokens, advance)
    clock.step("fit")
    by_layer = {
        site: tuple(len(guard.at(site).get(layer, ())) for layer in range(model.identity.layers))
        for site in (Site.KEY, Site.ATTENTION)
    }
    warnings = corpus_warnings(model, corpora)
    notes = [
        "importance over all tokens, the frame's own included: "
        + ", ".join(f"{role} {tokens}" for role, tokens in total.items()),
        f"feed-forward neurons pruned by layer: {', '.join(map(str, by_layer[Site.KEY]))}",
        f"attention neurons pruned by layer: {', '.join(map(str, by_layer[Site.ATTENTION]))}",
    ]
    return finish(
        PruningCalibration,
        SELECTIVE_PRUNING,
        guard,
        model,
        frames,
        corpora,
        clock,
        notes=notes,
        warnings=warnings,
        feed_forward_by_layer=by_layer[Site.KEY],
        attention_by_layer=by_layer[Site.ATTENTION],
        tokens=total,
    )
