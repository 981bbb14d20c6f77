"""Calibrates a guard by training: deltas are trained, made low-rank, and measured on text that is held out.

See `examples.py` for how forget and retain examples are dealt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from guards.calibration.activations import Activations
from guards.calibration.corpus import Share, corpus_warnings, encode_corpora, resolve_frames
from guards.calibration.finished import Calibration, Clock, finish
from guards.calibration.having import require_site
from guards.calibration.last_tokens import LastTokens, usual_length
from guards.calibration.sides import progress_bar
from guards.calibration.sources import Source
from guards.calibration.tuning import Trainable, Tuned
from guards.errors import CalibrationError
from guards.methods.delta import Factors
from guards.methods.rmu.checkpoint import binding, keep, kept
from guards.methods.rmu.entry import VARIANTS
from guards.methods.rmu.examples import dealt_examples
from guards.methods.rmu.guard import RmuGuard
from guards.methods.rmu.objectives import (
    AdaptiveMisdirection,
    CosineMisdirection,
    Misdirection,
    Objective,
    ProbeSuppression,
    random_unit,
)
from guards.methods.rmu.options import (
    AdaptiveOptions,
    CosineOptions,
    FamilyOptions,
    LayerOptions,
    ProbeOptions,
    RmuOptions,
    TrainingOptions,
)
from guards.methods.rmu.probes import fit_probes
from guards.methods.rmu.ranks import Effect, Measuring, choose_rank, decompose, effects, losses, ranks_up_to
from guards.methods.rmu.recipe import Recipe
from guards.methods.rmu.training import Schedule, Sides, Step, Training
from guards.model.sites import Site

_DEPTH = (7, 32)
"""Zephyr-7B's layer 7, of 32, as a share."""
_PROBED = ((1, 4), (1, 2), (3, 4))
"""Depths of the three groups of three layers, as shares."""


@dataclass(frozen=True)
class Beside:
    """What deltas that were found otherwise do on the report part. `gain` as of `Effect`.

    `cosine`: of their entries with those of the whole trained deltas.
    """

    forget: float
    retain: float
    gain: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class RmuCalibration(Calibration):
    """A calibration with its training step by step, what each rank does, and which is served.

    `measured`: the losses of none, of the served and of the whole deltas on the report part; `beside`: of others there,
    by name.
    """

    history: tuple[Step, ...]
    alpha: float
    effects: tuple[Effect, ...]
    chosen: Effect
    measured: tuple[Effect, ...]
    beside: Mapping[str, Beside]
    energies: Mapping[int, tuple[tuple[int, float], ...]]
    """By layer, the energy at each rank."""


@dataclass(frozen=True)
class _Served:
    """What is served and how it was chosen; see `RmuCalibration`."""

    deltas: Mapping[int, Factors]
    effects: tuple[Effect, ...]
    chosen: Effect
    measured: tuple[Effect, ...]
    beside: Mapping[str, Beside]
    energies: Mapping[int, tuple[tuple[int, float], ...]]


def sites(_: TrainingOptions) -> tuple[Site, ...]:
    """What a calibration looks at."""
    return (Site.RESIDUAL,)


def trained_layers(options: FamilyOptions, layers: int) -> tuple[int, ...]:
    """Those whose projections are trained, of a model of so many. Raises CalibrationError for a layer that it lacks."""
    if isinstance(options, ProbeOptions):
        middles = [min(max(layers * over // under, 1), layers - 2) for over, under in _PROBED]
        return tuple(sorted({max(middle, 0) + step for middle in middles for step in (-1, 0, 1)} & set(range(layers))))
    assert isinstance(options, LayerOptions)
    layer = max(2, round(layers * _DEPTH[0] / _DEPTH[1])) if options.layer is None else options.layer
    if layer >= layers:
        raise CalibrationError(f"got `layer` {layer}, wanted one from 2 to below the model's {layers} layers")
    return layer - 2, layer - 1, layer


def _objective(model: Activations, options: FamilyOptions, layers: tuple[int, ...], sides: Sides) -> Objective:
    unit_D = random_unit(model.width(Site.RESIDUAL), options.seed).to(model.device)
    if isinstance(options, AdaptiveOptions):
        return AdaptiveMisdirection(layers[-1], unit_D, options.beta)
    if isinstance(options, RmuOptions):
        return Misdirection(layers[-1], unit_D, options.c)
    if isinstance(options, CosineOptions):
        return CosineMisdirection(layers[-1], unit_D)
    forget, retain = ([example.ids for example in side] for side in (sides.forget, sides.retain))
    return ProbeSuppression(fit_probes(model, layers, forget, retain, options.batch_tokens))


def _schedule(options: TrainingOptions) -> Schedule:
    learned = (
        {"alpha_rate": options.alpha_rate, "retain_worth": options.retain_worth}
        if isinstance(options, CosineOptions)
        else {}
    )
    return Schedule(
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        alpha=options.alpha,
        seed=options.seed,
        **learned,
    )


def _train(
    model: Activations,
    tuned: Tuned,
    objective: Objective,
    sides: Sides,
    options: TrainingOptions,
    files: Mapping[str, str],
) -> Training:
    """A training that is done, from where its checkpoint left it."""
    training = Training(tuned, objective, sides, _schedule(options))
    file = options.checkpoint
    bound = binding(model.identity, tuple(tuned.deltas), sides, options, files)
    if file is not None and (state := kept(file, bound, options.steps)) is not None:
        training.restore(state)

    def save() -> None:
        done = len(training.history)
        if file is not None and (done % options.checkpoint_every == 0 or done == options.steps):
            keep(file, training.state(), bound)

    with progress_bar(options.steps, options.progress, unit="step") as advance:
        advance(len(training.history), "train")
        training.run(lambda step: advance(1, f"train, forget {step.forget:.3g}, retain {step.retain:.3g}"), save)
    return training


def _beside(on: Measuring, deltas: Mapping[int, Tensor], measured: Sequence[Effect]) -> Beside:
    """What deltas do where none and the trained ones, first and last of `measured`, were measured."""
    moved = {layer: deltas[layer].to(each.device) for layer, each in on.tuned.deltas.items()}
    forget, retain = losses(on, [moved.__getitem__])[0].tolist()
    none, whole, total = (
        each[0] + on.alpha * each[1]
        for each in (
            (measured[0].forget, measured[0].retain),
            (measured[-1].forget, measured[-1].retain),
            (forget, retain),
        )
    )
    found, trained = (torch.cat([of[layer].detach().flatten() for layer in moved]) for of in (moved, on.tuned.deltas))
    cosine = float(functional.cosine_similarity(found, trained, dim=0))
    return Beside(forget, retain, (none - total) / (none - whole) if none > whole else 0.0, cosine)


def _measure(
    model: Activations,
    tuned: Tuned,
    objective: Objective,
    dealt: Mapping[Share, Sides],
    training: Training,
    options: TrainingOptions,
    beside: Mapping[str, Mapping[int, Tensor]],
) -> _Served:
    """The rank is chosen on one part and measured on another."""
    parts = {layer: decompose(delta) for layer, delta in tuned.deltas.items()}
    most = min(options.max_rank, *(len(part.values_K) for part in parts.values()))
    held_out, reported = (
        Measuring(tuned, objective, dealt[share], training.alpha, options.batch)
        for share in (Share.THRESHOLD, Share.REPORT)
    )
    total = sum(
        len(each.ids) for on in (held_out, reported) for side in (on.sides.forget, on.sides.retain) for each in side
    )
    with progress_bar(total, options.progress) as advance:

        def measured(on: Measuring, ranks: Sequence[int]) -> list[Effect]:
            return effects(on, parts, ranks, lambda tokens: advance(tokens, "measure"))

        found = measured(held_out, ranks_up_to(most))
        chosen = choose_rank(found, options.kept)
        assert chosen.rank is not None
        there = measured(reported, (chosen.rank,))
    others = {name: _beside(reported, deltas, there) for name, deltas in beside.items()}
    last = LastTokens(model, options.batch_tokens, lambda *_: None)
    states = last.states(tuple(parts), [each.ids for each in held_out.sides.retain])
    deltas = {layer: Factors(*part.factors(chosen.rank), usual_length(states[layer])) for layer, part in parts.items()}
    energies = {layer: tuple((rank, part.energy(rank)) for rank in ranks_up_to(most)) for layer, part in parts.items()}
    return _Served(deltas, tuple(found), chosen, tuple(there), others, energies)


def calibrate_by(
    recipe: Recipe,
    model: Activations,
    forget: Sequence[Source],
    retain: Sequence[Source],
    options: TrainingOptions,
) -> RmuCalibration:
    """A guard of trained deltas with its record and canaries.

    Raises DataError or CalibrationError when the examples or the training give no guard, UnsupportedModelError for a
    model whose trained layers lack a projection.
    """
    clock = Clock()
    if not isinstance(model, Trainable):
        raise CalibrationError(
            "got an engine that runs models and trains none, wanted `engine` transformers; vLLM serves what that makes"
        )
    layers = recipe.layers(model.identity.layers)
    require_site(model, Site.OUTPUT, layers)
    frames = resolve_frames(options, model.codec)
    corpora = encode_corpora(forget, retain, frames, model.codec, model.max_tokens)
    dealt = dealt_examples(
        corpora, length=options.length, last_only=recipe.last_only, seed=options.seed, deal=recipe.deal
    )
    objective = recipe.objective(layers, dealt[Share.FIT])
    clock.step("encode")
    with model.tuned(layers) as tuned:
        training = _train(model, tuned, objective, dealt[Share.FIT], options, recipe.files)
        clock.step("train")
        served = _measure(model, tuned, objective, dealt, training, options, recipe.beside)
    clock.step("measure")
    warnings = [*corpus_warnings(model, corpora), *recipe.warnings(corpora)]
    if served.chosen.gain < options.kept:
        warnings.append(
            f"rank {served.chosen.rank} gains {served.chosen.gain:.2f} of what the whole delta does, less than `kept` "
            f"{options.kept}; raise `max_rank`"
        )
    return finish(
        RmuCalibration,
        recipe.entry,
        recipe.guard(served.deltas),
        model,
        frames,
        corpora,
        clock,
        notes=[*recipe.notes, *_notes(options, layers, training, served)],
        warnings=warnings,
        history=training.history,
        alpha=training.alpha,
        effects=served.effects,
        chosen=served.chosen,
        measured=served.measured,
        beside=served.beside,
        energies=served.energies,
    )


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: FamilyOptions
) -> RmuCalibration:
    """A guard of the RMU family; see `calibrate_by`."""
    recipe = Recipe(
        VARIANTS[options.variant],
        partial(trained_layers, options),
        partial(_objective, model, options),
        lambda deltas: RmuGuard(options.variant, deltas),
        last_only=isinstance(options, ProbeOptions),
    )
    return calibrate_by(recipe, model, forget, retain, options)


def _notes(options: TrainingOptions, layers: tuple[int, ...], training: Training, served: _Served) -> list[str]:
    none, low, whole = served.measured
    return [
        f"{options.variant}: {len(training.history)} steps of {options.batch} examples a side, "
        f"Adam at {options.rate:g}, alpha {training.alpha:.4g}, layers {', '.join(map(str, layers))}",
        f"rank {low.rank} holds {low.energy:.3f} of the delta's energy and {served.chosen.gain:.3f} of what it gains",
        f"held-out forget loss: {none.forget:.4g} without, {low.forget:.4g} served, {whole.forget:.4g} with the whole "
        f"delta; retain loss: {low.retain:.4g} served, {whole.retain:.4g} with the whole delta",
        *(
            f"{name} there: forget loss {each.forget:.4g}, retain loss {each.retain:.4g}, {each.gain:.3f} of what the "
            f"whole delta gains; cosine of the two {each.cosine:.3f}"
            for name, each in served.beside.items()
        ),
    ]
