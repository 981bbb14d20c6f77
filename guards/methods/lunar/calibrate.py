"""Calibrates LUNAR: a direction, passes of sums for the solve, and layer and ridge chosen on held-out prompts.

Suffixes: T tokens, D the residual stream's width (d_model), G ridges.

Texts of both sides are dealt into fit, threshold and report parts. Directions and sums are of the fit part. A layer's
ridge is what tells the threshold part's tokens of the two sides best. The layer is that under whose change the model
answers as is wanted at some prompts of the threshold part: forget prompts as it answers reference prompts, which is the
paper's choice, and retain prompts as it does without a change (`Likeness.deviation`). Nothing was chosen on the report
part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guards.calibration.activations import Activations, Pass, Tokens
from guards.calibration.corpus import SIDES, Share, Side, corpus_warnings
from guards.calibration.finished import Calibration, Clock, finish
from guards.calibration.grids import at_edge
from guards.calibration.having import candidate_layers, layers_having, require_site
from guards.calibration.last_tokens import usual_length
from guards.calibration.sides import progress_bar
from guards.calibration.sources import Source
from guards.calibration.statistics import auroc
from guards.errors import CalibrationError
from guards.methods.lunar.answers import Likeness, Refusal
from guards.methods.lunar.choice import Candidate, Compared, Hearing, Solved
from guards.methods.lunar.entry import LUNAR
from guards.methods.lunar.guard import RidgeSums
from guards.methods.lunar.job import Job, prepared
from guards.methods.lunar.options import LunarOptions
from guards.model.sites import Site

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""What is tried, of which the choice is made on held-out tokens."""
SUM_BYTES = 4 << 30
"""Of the sums of the layers that one pass gathers: the more entries key vectors have, the more passes it takes."""
WEAK = 0.25
"""Of `Compared.way`; a warning is written below: the skill is hardly redirected."""
KEPT = 0.5
"""Of `Likeness.kept`; below, a warning says that retain prompts are answered otherwise too."""
TOLD = 0.75
"""Of `Refusal.told`; below, a warning says that the model answers reference prompts as it does the skill's."""


@dataclass(frozen=True, kw_only=True)
class LunarCalibration(Calibration):
    """A calibration with every candidate, and what answers were compared with.

    `unchanged`: what is said at the threshold part without a change. `quoted` as of `Hearing`. `reported` is of the
    chosen change at the report part, and `auroc` how well w.k at last tokens there tells its two sides.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    refusal: Refusal
    unchanged: Likeness
    quoted: Mapping[str, tuple[str, ...]]
    reported: Compared
    auroc: float


def sites(_: LunarOptions) -> tuple[Site, ...]:
    """What a calibration looks at."""
    return Site.KEY, Site.RESIDUAL


def _layers(model: Activations, options: LunarOptions) -> tuple[int, ...]:
    """Those that are tried. Raises CalibrationError or UnsupportedModelError."""
    count = model.identity.layers
    if options.layer is not None:
        if not 0 <= options.layer < count:
            raise CalibrationError(f"got `layer` {options.layer}, wanted 0 to {count - 1}")
        require_site(model, Site.KEY, [options.layer])
        return (options.layer,)
    return layers_having(model, Site.KEY, candidate_layers(count, options.candidates))


def _gatherings(layers: tuple[int, ...], width: int) -> list[tuple[int, ...]]:
    """The layers whose sums are gathered together, pass after pass."""
    most = max(1, SUM_BYTES // (torch.float64.itemsize * width**2))
    return [layers[start : start + most] for start in range(0, len(layers), most)]


def _directions(job: Job, layers: tuple[int, ...]) -> dict[int, tuple[Tensor, float]]:
    """From forget prompts to reference prompts, float64 [D], and the usual length of retain prompts' states."""
    forget, reference, retain = (
        job.last.states(layers, examples)
        for examples in (job.some("forget", Share.FIT), job.reference, job.some("retain", Share.FIT))
    )
    return {layer: (reference[layer].mean(0) - forget[layer].mean(0), usual_length(retain[layer])) for layer in layers}


def _said(k_TF: Tensor, w: Tensor) -> Tensor:
    """w.k of held-out tokens, float64 on the host. Raises CalibrationError where one is not finite."""
    said = (k_TF.double() @ w.to(k_TF.device)).cpu()
    if not bool(torch.isfinite(said).all()):
        raise CalibrationError(
            "key vectors of held-out texts are not finite in this dtype: leave out what the model overflows on, or "
            "calibrate in a dtype of a wider range (bfloat16 or float32)"
        )
    return said


def _solve(job: Job, layers: tuple[int, ...], ridges: Sequence[float]) -> dict[int, Tensor]:
    """Each layer's w for every ridge, float64 [G, F], by one pass over the fit part. Raises CalibrationError."""
    sums = {layer: RidgeSums(job.model.width(Site.KEY), job.model.device) for layer in layers}
    for side in SIDES:

        def add(layer: int, k_TF: Tensor, _: Tensor, forget: bool = side == "forget") -> None:
            sums[layer].update(k_TF, forget=forget)

        job.keys(layers, side, Share.FIT, add)
    return {layer: sums.pop(layer).solve(ridges) for layer in layers}


def _solved(job: Job, gatherings: Sequence[tuple[int, ...]]) -> list[Solved]:
    """Each layer's change, with the ridge that was chosen. Raises CalibrationError."""
    ridges = RIDGES if job.options.ridge is None else (job.options.ridge,)
    layers = tuple(layer for together in gatherings for layer in together)
    w_GF = {layer: found for together in gatherings for layer, found in _solve(job, together, ridges).items()}
    held = {layer: {side: torch.zeros(3, len(ridges), dtype=torch.float64) for side in SIDES} for layer in layers}
    for side in SIDES:

        def measure(layer: int, k_TF: Tensor, _: Tensor, side: Side = side) -> None:
            said_TG = _said(k_TF, w_GF[layer].T)
            off_TG = said_TG - (1.0 if side == "forget" else 0.0)
            held[layer][side] += torch.stack([torch.ones_like(off_TG), said_TG, off_TG.square()]).sum(dim=1)

        job.keys(layers, side, Share.THRESHOLD, measure)
    directions, found = _directions(job, layers), []
    for layer in layers:
        error_G = torch.stack([held[layer][side][2] / held[layer][side][0] for side in SIDES]).sum(dim=0)
        best = int(error_G.argmin())
        said = {side: float((held[layer][side][1] / held[layer][side][0])[best]) for side in SIDES}
        direction_D, usual = directions[layer]
        w_F = w_GF[layer][best].cpu()
        found.append(Solved(layer=layer, direction_D=direction_D, usual=usual, w_F=w_F, ridge=ridges[best], said=said))
    return found


def _scores(job: Job, change: Solved) -> float:
    """AUROC of w.k at the report part's last tokens: how well it tells forget prompts from others."""
    said: dict[Side, list[Tensor]] = {side: [] for side in SIDES}
    for side, into in said.items():

        def keep(_: int, k_TF: Tensor, __: Tensor, into: list[Tensor] = into) -> None:
            into.append(-_said(k_TF, change.w_F))  # a small score is the skill's

        wanted = Pass(Site.KEY, (change.layer,), Tokens.LAST, batch_tokens=job.options.batch_tokens)
        job.model.stream(wanted, job.some(side, Share.REPORT), keep, lambda tokens: job.advance(tokens, "report"))
    return auroc(torch.cat(said["forget"]), torch.cat(said["retain"]))


def _warnings(options: LunarOptions, refusal: Refusal, reported: Compared) -> list[str]:
    found = []
    if refusal.told < TOLD:
        found.append(
            f"the model answers reference prompts much as it does the skill's (AUROC {refusal.told:.2f}): there is "
            "nowhere to redirect to, and the choice of the layer says little; take another `reference`"
        )
    elif (way := reported.way(refusal.own)) < WEAK:
        other = "try more `candidates`" if options.layer is None else "name another `layer`"
        found.append(
            f"on held-out prompts answers went {way:.2f} of the way to those to reference prompts: the skill is hardly "
            f"redirected; raise `strength`, or {other}"
        )
    if (kept := reported.changed.kept) < KEPT:
        found.append(
            f"held-out retain prompts are answered otherwise than before (cosine {kept:.2f}, 1 is as before): lower "
            "`strength`, or retain more of what is to stay"
        )
    return found


def _left_out(solved: Sequence[Solved], candidates: Sequence[Candidate]) -> list[str]:
    """A note of changes that were not compared, where there are any."""
    layers = {each.layer for each in solved} - {each.layer for each in candidates}
    said = ", ".join(map(str, sorted(layers)))
    return [f"left out, since the model is not finite in this dtype under its change: layer {said}"] if layers else []


def _gathered(gatherings: Sequence[tuple[int, ...]]) -> list[str]:
    """A note of passes, where it took several."""
    passes, layers = len(gatherings), sum(map(len, gatherings))
    return [f"sums of {layers} layers took {passes} passes over the fit part"] if passes > 1 else []


def _notes(job: Job, chosen: Candidate, refusal: Refusal, candidates: Sequence[Candidate], to: Compared) -> list[str]:
    options = job.options
    tried = "; ".join(f"layer {each.layer} {each.likeness.alike:.3f}, {each.likeness.kept:.3f}" for each in candidates)
    return [
        f"layer {chosen.layer}, ridge {chosen.ridge:g}, strength {options.strength:g}, reference {options.reference}: "
        f"{len(job.reference)} prompts",
        f"w.k on held-out tokens: forget {chosen.said['forget']:.3f}, retain {chosen.said['retain']:.3f}",
        f"likeness of forget answers to those to reference prompts, and of retain answers to the unchanged model's, by "
        f"which the layer was chosen: {tried}; reference answers themselves {refusal.own:.3f}",
        f"the same on the report part: {to.changed.alike:.3f}, {to.changed.kept:.3f}; without the change "
        f"{to.unchanged.alike:.3f}",
        *(at_edge("ridge", chosen.ridge, RIDGES) if options.ridge is None else ()),
    ]


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: LunarOptions
) -> LunarCalibration:
    """A guard that changes one layer, with its record and canaries.

    Raises DataError or CalibrationError where the examples give no guard, UnsupportedModelError for a model without a
    layer that has the sites.
    """
    clock = Clock()
    layers = _layers(model, options)
    gatherings = _gatherings(layers, model.width(Site.KEY))
    job = prepared(model, forget, retain, options)
    clock.step("encode")
    with progress_bar(job.tokens(len(layers), len(gatherings)), options.progress) as advance:
        job = replace(job, advance=advance)
        solved = _solved(job, gatherings)
        clock.step("fit")
        hearing = Hearing(job)
        candidates = hearing.candidates(solved)
        chosen = min(candidates, key=lambda each: each.likeness.deviation)
        clock.step("choose")
        reported, told = hearing.reported(chosen), _scores(job, chosen)
        clock.step("report")
    corpora = job.corpora["forget"], job.corpora["retain"]
    return finish(
        LunarCalibration,
        LUNAR,
        chosen.guard(options),
        model,
        job.frames,
        corpora,
        clock,
        notes=[
            *_notes(job, chosen, hearing.refusal, candidates, reported),
            *_gathered(gatherings),
            *_left_out(solved, candidates),
        ],
        warnings=[*corpus_warnings(model, corpora), *_warnings(options, hearing.refusal, reported)],
        seed=options.seed,
        candidates=tuple(candidates),
        chosen=chosen,
        refusal=hearing.refusal,
        unchanged=hearing.unchanged(Share.THRESHOLD),
        quoted=hearing.quoted,
        reported=reported,
        auroc=told,
    )
