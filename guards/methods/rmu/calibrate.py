"""Calibrates a guard of the RMU family: deltas are trained, made low-rank, and measured on text that is held out.

See `examples.py` for how forget and retain examples are dealt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from guards.calibration.activations import Activations
from guards.calibration.corpus import Share, corpus_warnings, encode_corpora, resolve_frames
from guards.calibration.finished import Calibration, Clock, finish
from guards.calibration.having import require_site
from guards.calibration.sides import progress_bar
from guards.calibration.sources import Source
from guards.calibration.tuning import Example, Trainable, Tuned
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
    LayerOptions,
    ProbeOptions,
    RmuOptions,
    TrainingOptions,
)
from guards.methods.rmu.probes import fit_probes
from guards.methods.rmu.ranks import Effect, Measuring, choose_rank, decompose, effects, ranks_up_to
from guards.methods.rmu.training import Schedule, Sides, Step, Training
from guards.model.sites import Site

_DEPTH = (7, 32)
"""Zephyr-7B's layer 7, of 32, as a share."""
_PROBED = ((1, 4), (1, 2), (3, 4))
"""Depths of the three groups of three layers, as shares."""


@dataclass(frozen=True, kw_only=True)
class RmuCalibration(Calibration):
    """A calibration with its training step by step, what each rank does, and which is served.

    `measured`: the losses of none, of the served and of the whole deltas on the report part.
    """

    history: tuple[Step, ...]
    alpha: float
    effects: tuple[Effect, ...]
    chosen: Effect
    measured: tuple[Effect, ...]
    energies: Mapping[int, tuple[tuple[int, float], ...]]
    """By layer, the energy at each rank."""


@dataclass(frozen=True)
class _Served:
    """What is served and how it was chosen; see `RmuCalibration`."""

    deltas: Mapping[int, Factors]
    effects: tuple[Effect, ...]
    chosen: Effect
    measured: tuple[Effect, ...]
    energies: Mapping[int, tuple[tuple[int, float], ...]]


def sites(_: TrainingOptions) -> tuple[Site, ...]:
    """What a calibration looks at."""
    return (Site.RESIDUAL,)


def trained_layers(options: TrainingOptions, layers: int) -> tuple[int, ...]:
    """Those whose projections are trained, of a model of so many. Raises CalibrationError for a layer that it lacks."""
    if isinstance(options, ProbeOptions):
        middles = [min(max(layers * over // under, 1), layers - 2) for over, under in _PROBED]
        return tuple(sorted({max(middle, 0) + step for middle in middles for step in (-1, 0, 1)} & set(range(layers))))
    assert isinstance(options, LayerOptions)
    layer = max(2, round(layers * _DEPTH[0] / _DEPTH[1])) if options.layer is None else options.layer
    if layer >= layers:
        raise CalibrationError(f"got `layer` {layer}, wanted one from 2 to below the model's {layers} layers")
    return layer - 2, layer - 1, layer


def _objective(model: Activations, options: TrainingOptions, layers: tuple[int, ...], sides: Sides) -> Objective:
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


def _train(model: Activations, tuned: Tuned, objective: Objective, sides: Sides, options: TrainingOptions) -> Training:
    """A training that is done, from where its checkpoint left it."""
    training = Training(tuned, objective, sides, _schedule(options))
    file = options.checkpoint
    bound = binding(model.identity, tuple(tuned.deltas), sides, options)
    if file is not None and (state := kept(file, bound)) is not None:
        training.restore(state)

    def save() -> None:
        done = len(training.history)
        if file is not None and (done % options.checkpoint_every == 0 or done == options.steps):
            keep(file, training.state(), bound)

    with progress_bar(options.steps, options.progress, unit="step") as advance:
        advance(len(training.history), "train")
        training.run(lambda step: advance(1, f"train, forget {step.forget:.3g}, retain {step.retain:.3g}"), save)
    return training


@torch.no_grad()
def _usual_lengths(tuned: Tuned, retain: Sequence[Example], batch: int) -> dict[int, float]:
    """See `Factors.usual`."""
    layers, squares, count = tuple(tuned.deltas), dict.fromkeys(tuned.deltas, 0.0), len(retain)
    last = [Example(ids, len(ids) - 1) for ids, _ in retain]
    for start in range(0, count, batch):
        for layer, states_ED in tuned.open(layers, last[start : start + batch]).before.items():
            squares[layer] += float(states_ED.double().square().sum())
    return {layer: (total / count) ** 0.5 for layer, total in squares.items()}


def _measure(
    tuned: Tuned,
    objective: Objective,
    dealt: Mapping[Share, Sides],
    training: Training,
    options: TrainingOptions,
) -> _Served:
    """The rank is chosen on one part and measured on another."""
    parts = {layer: decompose(delta) for layer, delta in tuned.deltas.items()}
    most = min(options.max_rank, *(len(part.values_K) for part in parts.values()))
    held_out = [dealt[Share.THRESHOLD], dealt[Share.REPORT]]
    total = sum(len(each.ids) for sides in held_out for side in (sides.forget, sides.retain) for each in side)
    with progress_bar(total, options.progress) as advance:

        def measured(sides: Sides, ranks: Sequence[int]) -> list[Effect]:
            measuring = Measuring(tuned, objective, sides, training.alpha, options.batch)
            return effects(measuring, parts, ranks, lambda tokens: advance(tokens, "measure"))

        found = measured(held_out[0], ranks_up_to(most))
        chosen = choose_rank(found, options.kept)
        assert chosen.rank is not None
        reported = measured(held_out[1], (chosen.rank,))
    usual = _usual_lengths(tuned, held_out[0].retain, options.batch)
    deltas = {layer: Factors(*part.factors(chosen.rank), usual[layer]) for layer, part in parts.items()}
    energies = {layer: tuple((rank, part.energy(rank)) for rank in ranks_up_to(most)) for layer, part in parts.items()}
    return _Served(deltas, tuple(found), chosen, tuple(reported), energies)


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: TrainingOptions
) -> RmuCalibration:
    """A guard with its record and canaries.

    Raises DataError or CalibrationError when the examples or the training give no guard, UnsupportedModelError for a
    model whose trained layers lack a projection.
    """
    clock = Clock()
    if not isinstance(model, Trainable):
        raise CalibrationError(
            "got an engine that runs models and trains none, wanted `engine` transformers; vLLM serves what that makes"
        )
    layers = trained_layers(options, model.identity.layers)
    require_site(model, Site.OUTPUT, layers)
    frames = resolve_frames(options.frames, model.codec)
    corpora = encode_corpora(forget, retain, frames, model.codec, model.max_tokens)
    last_only = isinstance(options, ProbeOptions)
    dealt = dealt_examples(corpora, length=options.length, last_only=last_only, seed=options.seed)
    objective = _objective(model, options, layers, dealt[Share.FIT])
    clock.step("encode")
    with model.tuned(layers) as tuned:
        training = _train(model, tuned, objective, dealt[Share.FIT], options)
        clock.step("train")
        served = _measure(tuned, objective, dealt, training, options)
    clock.step("measure")
    warnings = corpus_warnings(model, corpora)
    if served.chosen.gain < options.kept:
        warnings.append(
            f"rank {served.chosen.rank} gains {served.chosen.gain:.2f} of what the whole delta does, less than `kept` "
            f"{options.kept}; raise `max_rank`"
        )
    return finish(
        RmuCalibration,
        VARIANTS[options.variant],
        RmuGuard(options.variant, served.deltas),
        model,
        frames,
        corpora,
        clock,
        notes=_notes(options, layers, training, served),
        warnings=warnings,
        history=training.history,
        alpha=training.alpha,
        effects=served.effects,
        chosen=served.chosen,
        measured=served.measured,
        energies=served.energies,
    )


def _notes(options: TrainingOptions, layers: tuple[int, ...], training: Training, served: _Served) -> list[str]:
    none, low, whole = served.measured
    return [
        f"{options.variant}: {len(training.history)} steps of {options.batch} examples a side, "
        f"Adam at {options.rate:g}, alpha {training.alpha:.4g}, layers {', '.join(map(str, layers))}",
        f"rank {low.rank} holds {low.energy:.3f} of the delta's energy and {served.chosen.gain:.3f} of what it gains",
        f"held-out forget loss: {none.forget:.4g} without, {low.forget:.4g} served, {whole.forget:.4g} with the whole "
        f"delta; retain loss: {low.retain:.4g} served, {whole.retain:.4g} with the whole delta",
    ]
