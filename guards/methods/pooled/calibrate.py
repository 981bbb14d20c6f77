"""Calibrates pooled Key Space Detection: one pass for the mean key vectors, then discriminants, layers and tau.

Suffixes: E examples, N key vectors, F feed-forward width (d_ff).

Both sides are dealt into fit (half), threshold (a quarter) and report (a quarter); `corpus.Share` says what
for. Memory grows with frames * examples * candidate layers * d_ff * 4 bytes; a fit takes at most FIT_VECTORS a side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guards.artifact.manifest import Rate
from guards.calibration.activations import Activations, Pass, Tokens
from guards.calibration.corpus import FORGET_DEAL, Share, Side
from guards.calibration.detector_job import (
    DetectorFrame,
    DetectorJob,
    layers_text,
    near_sources,
    prepare,
    rates_by_source,
    shortages,
    worst_rates,
)
from guards.calibration.finished import Calibration, Clock, finish
from guards.calibration.options import DetectorOptions
from guards.calibration.sides import Advance, progress_bar
from guards.calibration.sources import Source
from guards.calibration.statistics import auroc, conformal_tau
from guards.calibration.thresholds import MIN_RECALL, arithmetic, false_abstention_bound, place_tau, rate_of
from guards.errors import CalibrationError
from guards.methods.pooled.entry import POOLED
from guards.methods.pooled.guard import DiscriminantFitter, LayerWeights, PooledGuard, mean_scores
from guards.methods.pooled.options import QUESTION_FRAME, PooledOptions
from guards.model.encoding import BARE_FRAME, CHAT_FRAME
from guards.model.sites import Site

FIT_VECTORS = 3000
"""Mean key vectors a side that are fitted, dealt evenly: a fit solves for as many unknowns as there are vectors."""
CANDIDATES = 4
"""Layers that are looked at where none is given: this many of the upper half, evenly spaced, the last among them."""

PooledJob = DetectorJob[PooledOptions]

Means = Mapping[tuple[Side, Share, str], Mapping[int, Tensor]]
"""Per side, share and frame: mean key vectors by layer, float32 [E, F]."""


@dataclass(frozen=True)
class Candidate:
    """A discriminant over some layers. `auroc` and `margin`, on the threshold part, choose among them.

    `tau` is what it would be served with; the rates and `reported_auroc` are those of the report part.
    """

    terms: tuple[LayerWeights, ...]
    floored: int
    auroc: float
    margin: float
    tau: float
    reported_auroc: float
    recall: Rate
    false_abstention: Rate

    @property
    def layers(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(term.layer for term in self.terms)


@dataclass(frozen=True, kw_only=True)
class PooledCalibration(Calibration):
    """A calibration with its figures by frame and by candidate. `vectors` of the forget set were fitted."""

    options: PooledOptions
    frames: tuple[DetectorFrame, ...]
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    vectors: int


def candidate_layers(count: int) -> tuple[int, ...]:
    """Of a model of `count` layers: CANDIDATES of its upper half, evenly spaced, the last among them."""
    first, last = count // 2, count - 1
    wanted = min(CANDIDATES, last - first + 1)
    return tuple(last - round(i * (last - first) / max(1, wanted - 1)) for i in reversed(range(wanted)))


def _mean_keys(job: PooledJob, role: Side, share: Share, frame: str, advance: Advance) -> dict[int, Tensor]:
    examples = job.examples(role, share, frame)
    means = {layer: torch.full((len(examples), job.model.identity.d_ff), torch.nan) for layer in job.layers}

    def consume(layer: int, mean_EF: Tensor, example_E: Tensor) -> None:
        means[layer][example_E.cpu()] = mean_EF.cpu()

    wanted = Pass(Site.KEY, job.layers, Tokens.MEAN, batch_tokens=job.options.batch_tokens)
    job.model.stream(wanted, examples, consume, lambda tokens: advance(tokens, "read"))
    if not all(bool(torch.isfinite(mean_EF).all()) for mean_EF in means.values()):
        raise CalibrationError("a key vector is not finite: the model overflows on this data in this dtype")
    return means


def _fit_part(job: PooledJob, means: Means, role: Side) -> dict[int, Tensor]:
    """The vectors to fit, all frames together, float32 [N, F] by layer."""
    vectors = {layer: torch.cat([means[role, Share.FIT, frame][layer] for frame in job.frames]) for layer in job.layers}
    count = len(vectors[job.layers[0]])
    if count <= FIT_VECTORS:
        return vectors
    kept = torch.linspace(0, count - 1, FIT_VECTORS, dtype=torch.float64).round().long()
    return {layer: vectors_NF[kept] for layer, vectors_NF in vectors.items()}


def place(forget: Sequence[Tensor], retain: Sequence[Tensor], options: DetectorOptions) -> tuple[float, float]:
    """Tau, and the room that both sides leave for it: below zero where they overlap. Scores [E] by frame.

    Between the smallest tau that reaches the recall in every frame and the largest that keeps the cap in every frame.
    """
    needed = max(conformal_tau(forget_E, options.recall) for forget_E in forget)
    bound = min(false_abstention_bound(retain_E, options.max_false_abstention) for retain_E in retain)
    return place_tau(needed, bound, options.placement, middle=arithmetic), bound - needed


def _candidate(job: PooledJob, means: Means, fitter: DiscriminantFitter, layers: Sequence[int]) -> Candidate:
    terms = fitter.finish(layers)

    def scores(role: Side, share: Share) -> list[Tensor]:
        return [mean_scores(terms, means[role, share, frame]) for frame in job.frames]

    forget, retain = scores("forget", Share.THRESHOLD), scores("retain", Share.THRESHOLD)
    held_forget_E, held_retain_E = (torch.cat(scores(role, Share.REPORT)) for role in ("forget", "retain"))
    tau, margin = place(forget, retain, job.options)
    return Candidate(
        terms,
        fitter.floored(layers),
        auroc(torch.cat(forget), torch.cat(retain)),
        margin,
        tau,
        auroc(held_forget_E, held_retain_E),
        rate_of(held_forget_E <= tau),
        rate_of(held_retain_E <= tau),
    )


def best(candidates: Sequence[Candidate]) -> Candidate:
    """Separates best: by AUROC to three digits, then room for tau to two, then the most layers, then the last ones."""
    return max(candidates, key=lambda c: (round(c.auroc, 3), round(c.margin, 2), len(c.layers), c.layers))


def _frame(job: PooledJob, means: Means, chosen: Candidate, frame: str) -> DetectorFrame:
    forget_E, retain_E = (mean_scores(chosen.terms, means[role, Share.REPORT, frame]) for role in ("forget", "retain"))
    hits_E = retain_E <= chosen.tau
    return DetectorFrame(
        frame=frame,
        layers=chosen.layers,
        tau=chosen.tau,
        auroc=auroc(forget_E, retain_E),
        recall=rate_of(forget_E <= chosen.tau),
        false_abstention=rate_of(hits_E),
        sources=rates_by_source(job, hits_E),
        forget_E=forget_E,
        retain_E=retain_E,
    )


def _warnings(job: PooledJob, chosen: Candidate, frames: Sequence[DetectorFrame], vectors: int) -> list[str]:
    """What the operator should know. Raises CalibrationError where the guard would keep no promise."""
    options, found = job.options, shortages(job, vectors)
    where = layers_text(chosen.layers)
    for result in frames:
        if result.recall.rate < MIN_RECALL:
            raise CalibrationError(
                f"recall {result.recall.rate:.3f} in frame {result.frame!r} is all that `max_false_abstention` "
                f"{options.max_false_abstention} allows, wanted at least {MIN_RECALL}; nothing was written "
                f"({where}, AUROC {result.auroc:.3f}). Give more forget examples of one kind, leave that frame "
                "out of `frames`, try another `layer`, or raise `max_false_abstention`"
            )
        found += near_sources(result.frame, result.sources, options.max_false_abstention)
    if not chosen.tau > 0:
        option = "max_false_abstention" if chosen.margin < 0 else "recall"
        raise CalibrationError(
            f"tau {chosen.tau:.3g} is not above 0, the score of the forget examples' mean, so no artifact may hold it; "
            f"nothing was written ({where}). Take the retain examples out that need the skill, try another "
            f"`layer`, or raise `{option}` {getattr(options, option)}"
        )
    if chosen.margin < 0:
        found.append(
            f"tau was lowered below what `recall` {options.recall} needs, to keep `max_false_abstention` "
            f"{options.max_false_abstention}: recall {min(r.recall.rate for r in frames):.3f}"
        )
    return found


def _notes(job: PooledJob, chosen: Candidate, fitted: Mapping[Side, int]) -> list[str]:
    return [
        job.dealt(),
        "layers and tau were chosen on the threshold parts, the rates measured on the report parts",
        "of several frames the rates are those of the frame where they are worst",
        "scored on the mean key vector of the prompt; rates while the model writes are not measured",
        f"layers {', '.join(map(str, chosen.layers))}; {fitted['forget']} forget and {fitted['retain']} retain mean "
        f"key vectors were fitted, deviation floored in {chosen.floored} dimensions",
    ]


def _chat(model: Activations) -> tuple[str, ...]:
    return (CHAT_FRAME,) if model.codec.has_chat_template else ()


def sites(_: PooledOptions) -> tuple[Site, ...]:
    """What a calibration looks at."""
    return (Site.KEY,)


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: PooledOptions
) -> PooledCalibration:
    """A guard over one or several layers, with its record, canaries and report.

    Raises DataError or CalibrationError when the examples allow no guard that keeps what `options` promise.
    """
    clock = Clock()
    if not options.frames:
        options = replace(options, frames=(*_chat(model), BARE_FRAME, QUESTION_FRAME))
    candidates_at = candidate_layers(model.identity.layers)
    job = prepare(model, forget, retain, options, layers=candidates_at, retain_deal=FORGET_DEAL)
    layers = job.layers
    clock.step("encode")
    roles: tuple[Side, ...] = ("forget", "retain")
    with progress_bar(job.tokens, options.progress) as advance:
        means = {
            (role, share, frame): _mean_keys(job, role, share, frame, advance)
            for frame in job.frames
            for role in roles
            for share in Share
        }
    clock.step("read")
    parts = {role: _fit_part(job, means, role) for role in roles}
    fitter = DiscriminantFitter(parts["forget"], parts["retain"])
    sets = [(layer,) for layer in layers] + ([layers] if len(layers) > 1 else [])
    candidates = tuple(_candidate(job, means, fitter, each) for each in sets)
    chosen = best(candidates)
    frames = tuple(_frame(job, means, chosen, frame) for frame in job.frames)
    fitted = {role: len(parts[role][layers[0]]) for role in roles}
    warnings = _warnings(job, chosen, frames, fitted["forget"])
    guard = PooledGuard(chosen.terms, chosen.tau, options.scope)
    clock.step("fit")
    return finish(
        PooledCalibration,
        POOLED,
        guard,
        model,
        job.frames,
        (job.corpora["forget"], job.corpora["retain"]),
        clock,
        notes=_notes(job, chosen, fitted),
        warnings=warnings,
        rates=worst_rates(frames),
        options=options,
        frames=frames,
        candidates=candidates,
        chosen=chosen,
        vectors=fitted["forget"],
    )
