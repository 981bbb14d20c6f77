"""Calibrates Key Space Detection by cubes, as in the paper.

Chooses each frame's layer and tau, and reports on examples that nothing was chosen on.

Suffixes: L layers, C cubes (one per fitted frame), E examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guards.artifact.manifest import Rate
from guards.calibration.activations import Activations, Tokens
from guards.calibration.corpus import Share
from guards.calibration.detector_job import prepare, shortages
from guards.calibration.finished import Calibration, Clock, finish
from guards.calibration.having import require_site
from guards.calibration.sides import progress_bar
from guards.calibration.sources import Source
from guards.calibration.statistics import auroc, conformal_tau
from guards.calibration.thresholds import (
    MIN_RECALL,
    below,
    false_abstention_bound,
    hits,
    joint_scale,
    margin,
    place_tau,
    rate_of,
)
from guards.errors import CalibrationError
from guards.methods.cube.entry import CUBE
from guards.methods.cube.guard import CubeGuard, Regime
from guards.methods.cube.options import CubeOptions
from guards.methods.cube.passes import CubeJob, Fit, Scores, fit_frame, judged_tokens, score_all
from guards.model.sites import Site


@dataclass(frozen=True)
class LayerResult:
    """One layer's cube by itself. `auroc` and `margin`, on the threshold part, choose the layer.

    `tau` keeps the cap alone; the rates and `reported_auroc` are those of the report part.
    """

    fit: Fit
    auroc: float
    margin: float
    tau: float
    reported_auroc: float
    recall: Rate
    false_abstention: Rate


@dataclass(frozen=True, kw_only=True)
class FrameResult:
    """What the guard does to prompts in one frame, on the report part. The rates are those of all cubes together.

    `chosen` is the frame's own cube, among one at each layer; `forget_E` and `retain_E` are its scores, `tau` its own.
    `sources`: the false abstentions by retain source. `ratio_E`: of retain prompts the score over tau of the nearest
    cube, float64.
    """

    frame: str
    tau: float
    recall: Rate
    false_abstention: Rate
    sources: Mapping[str, Rate]
    ratio_E: Tensor
    forget_E: Tensor
    retain_E: Tensor
    chosen: LayerResult
    by_layer: tuple[LayerResult, ...]


@dataclass(frozen=True, kw_only=True)
class CubeCalibration(Calibration):
    """A calibration with its figures by frame."""

    options: CubeOptions
    frames: tuple[FrameResult, ...]


def best_layer(results: Sequence[LayerResult]) -> LayerResult:
    """The layer that separates best: by AUROC to three digits, then margin to two, then the last as in the paper."""
    return max(results, key=lambda r: (round(r.auroc, 3), round(r.margin, 2), r.fit.cube.layer))


def _layer_results(job: CubeJob, scores: Scores, fits: Sequence[Fit], cube: int) -> tuple[LayerResult, ...]:
    """One frame's cubes, judged on forget prompts in that frame and retain prompts in every frame."""
    recall, cap = job.options.recall, job.options.max_false_abstention
    frame, results = job.frames[cube], []
    for i, fit in enumerate(fits):
        forget_E = scores["forget", Share.THRESHOLD, frame][cube, i]
        held_forget_E = scores["forget", Share.REPORT, frame][cube, i]
        per_frame = [scores["retain", Share.THRESHOLD, served][cube, i] for served in job.frames]
        bound = min(false_abstention_bound(retain_E, cap) for retain_E in per_frame)
        tau = place_tau(conformal_tau(forget_E, recall), bound, job.options.placement)
        retain_E = torch.cat(per_frame)
        held_retain_E = torch.cat([scores["retain", Share.REPORT, served][cube, i] for served in job.frames])
        results.append(
            LayerResult(
                fit,
                auroc(forget_E, retain_E),
                margin(forget_E, bound, recall=recall),
                tau,
                auroc(held_forget_E, held_retain_E),
                rate_of(held_forget_E <= tau),
                rate_of(held_retain_E <= tau),
            )
        )
    return tuple(results)


def _rates_by_source(job: CubeJob, retain_hits_E: Tensor) -> dict[str, Rate]:
    """False abstentions by retain source, of the retain examples of the report part."""
    retain = job.corpora["retain"]
    source_E = torch.tensor([retain.source_of[example] for example in job.parts["retain"][Share.REPORT]])
    return {source.name: rate_of(retain_hits_E[source_E == i]) for i, source in enumerate(retain.sources)}


def _frame_result(
    job: CubeJob, scores: Scores, cube: int, layers: tuple[LayerResult, ...], rows: list[int], taus: list[float]
) -> FrameResult:
    """`rows[c]`: index of cube c's layer among those scored."""
    frame, chosen_C = job.frames[cube], torch.arange(len(rows))
    forget_CE = scores["forget", Share.REPORT, frame][chosen_C, torch.tensor(rows)]
    retain_CE = scores["retain", Share.REPORT, frame][chosen_C, torch.tensor(rows)]
    retain_hits_E, own = hits(retain_CE, taus), layers[rows[cube]]
    return FrameResult(
        frame=frame,
        tau=taus[cube],
        recall=rate_of(hits(forget_CE, taus)),
        false_abstention=rate_of(retain_hits_E),
        sources=_rates_by_source(job, retain_hits_E),
        ratio_E=(retain_CE.double() / torch.tensor(taus, dtype=torch.float64)[:, None]).amin(dim=0),
        forget_E=forget_CE[cube],
        retain_E=retain_CE[cube],
        chosen=own,
        by_layer=layers,
    )


def _choose(job: CubeJob, fits: Sequence[Sequence[Fit]], scores: Scores) -> tuple[FrameResult, ...]:
    """A layer per frame, then taus that together keep the cap in every frame."""
    cap = job.options.max_false_abstention
    tables = [_layer_results(job, scores, fits[c], c) for c in range(len(job.frames))]
    chosen = [best_layer(table) for table in tables]
    rows = [table.index(result) for table, result in zip(tables, chosen, strict=True)]
    picked = torch.arange(len(rows)), torch.tensor(rows)
    threshold_part = [scores["retain", Share.THRESHOLD, frame][picked] for frame in job.frames]
    alone = [result.tau for result in chosen]
    scale = joint_scale(threshold_part, alone, cap)
    taus = alone if scale == 1.0 else [below(tau * scale) for tau in alone]
    return tuple(_frame_result(job, scores, c, tables[c], rows, taus) for c in range(len(rows)))


def _near_sources(frame: str, sources: Mapping[str, Rate], cap: float) -> list[str]:
    """Warnings of retain sources that by themselves are surely above the cap."""
    return [
        f"frame {frame!r}: false abstention {rate.rate:.3f} on {name} alone; the cap holds on all retain texts "
        "together: its texts may need the skill, else lower `recall`"
        for name, rate in sources.items()
        if rate.low > cap
    ]


def _warnings(job: CubeJob, frames: Sequence[FrameResult]) -> list[str]:
    """What the operator should know. Raises CalibrationError when a frame's recall is below MIN_RECALL."""
    options, found = job.options, shortages(job, min(result.chosen.fit.vectors for result in frames))
    for result in frames:
        reached = f"recall {result.recall.rate:.3f} in frame {result.frame!r}"
        if result.recall.rate < MIN_RECALL:
            raise CalibrationError(
                f"{reached} is all that `max_false_abstention` {options.max_false_abstention} allows, wanted at least "
                f"{MIN_RECALL}; nothing was written (layer {result.chosen.fit.cube.layer}, AUROC "
                f"{result.chosen.reported_auroc:.3f}). Give more forget examples of one kind, try other `frames` or "
                "another `regime`, or raise `max_false_abstention`"
            )
        if result.chosen.margin < 0 or result.tau < result.chosen.tau:
            found.append(
                f"tau was lowered below what `recall` {options.recall} needs, to keep `max_false_abstention` "
                f"{options.max_false_abstention}: {reached}"
            )
        found += _near_sources(result.frame, result.sources, options.max_false_abstention)
    return found


def _notes(job: CubeJob, frames: Sequence[FrameResult]) -> list[str]:
    judged = {
        "last": "the last prompt token; rates while the model writes are not measured",
        "all": "every token of a text, one hit counting: the text stands for an answer of its length",
        "all and last": "every token of a text and the last prompt token, one hit counting: the text stands for an "
        "answer of its length",
    }[judged_tokens(job.options).value]
    notes = [
        job.dealt(),
        "layer and tau were chosen on the threshold parts, the rates measured on the report parts",
        "of several frames the rates are those of the frame where they are worst",
        f"scored at {judged}",
    ]
    for result in frames:
        fit = result.chosen.fit
        notes.append(
            f"frame {result.frame!r}: layer {fit.cube.layer}, {fit.vectors} key vectors, deviation floored in "
            f"{fit.floored} of {job.model.identity.d_ff} dimensions"
        )
    return notes


def _prompt_ratios(job: CubeJob, frames: Sequence[FrameResult]) -> list[float]:
    """None where texts were scored at all of their tokens: a prompt is judged at its last."""
    if judged_tokens(job.options) is not Tokens.LAST:
        return []
    return torch.cat([result.ratio_E for result in frames]).tolist()


def sites(_: CubeOptions) -> tuple[Site, ...]:
    """What a calibration looks at."""
    return (Site.KEY,)


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: CubeOptions
) -> CubeCalibration:
    """A guard with one cube per frame, with its record, canaries and report.

    Raises DataError or CalibrationError when the examples allow no guard that keeps what `options` promise.
    """
    clock = Clock()
    job = prepare(model, forget, retain, options)
    require_site(model, Site.KEY, job.layers)
    clock.step("encode")
    with progress_bar(job.tokens, job.options.progress) as advance:
        fits = [fit_frame(job, frame, advance) for frame in job.frames]
        clock.step("fit")
        scores = score_all(job, fits, advance)
        clock.step("score")
    frames = _choose(job, fits, scores)
    warnings = _warnings(job, frames)
    guard = CubeGuard(
        tuple(replace(result.chosen.fit.cube, tau=result.tau) for result in frames),
        job.options.scope,
        Regime(options.regime),
    )
    return finish(
        CubeCalibration,
        CUBE,
        guard,
        model,
        job.frames,
        (job.corpora["forget"], job.corpora["retain"]),
        clock,
        notes=_notes(job, frames),
        warnings=warnings,
        rates=(
            min((frame.recall for frame in frames), key=lambda rate: rate.rate),
            max((frame.false_abstention for frame in frames), key=lambda rate: rate.rate),
        ),
        prompt_ratios=_prompt_ratios(job, frames),
        options=options,
        frames=frames,
    )
