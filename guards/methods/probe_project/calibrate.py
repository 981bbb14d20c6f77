"""Calibrates projections by probes: the detector's own probes and layers, and how far tokens are moved.

Suffixes: E examples, N windows, D the residual stream's width (d_model).

Probes are fitted as for the detector, on the fit part, and ranked by held-out log-AUROC within each third of the model.
beta is what brings the threshold part's forget prompts nearest to the retain prompts at the last block, and leaves
these where they were (`Candidate.deviation`). The report part chose nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guards.calibration.accumulated import turns_of
from guards.calibration.activations import Activations, TokenIds
from guards.calibration.corpus import SIDES, Share, Side, corpus_warnings
from guards.calibration.detector_job import layers_text
from guards.calibration.finished import Calibration, Clock, finish
from guards.calibration.grids import at_edge
from guards.calibration.last_tokens import NOT_FINITE, LastTokens, evenly, share_moved, usual_length
from guards.calibration.sides import progress_bar
from guards.calibration.sources import Source
from guards.errors import CalibrationError
from guards.methods.probe.calibrate import recipe
from guards.methods.probe.fit import Probe, RankedProbes
from guards.methods.probe_project.entry import PROBE_PROJECT
from guards.methods.probe_project.guard import Boundary, ProjectionGuard
from guards.methods.probe_project.options import ProjectOptions
from guards.methods.spans.calibrate import fit_windows, prepared, read_held
from guards.methods.spans.examples import Example, all_examples
from guards.methods.spans.held import Held
from guards.methods.spans.passes import WindowsOf
from guards.model.sites import Site

BETAS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""What is tried where none is given."""
WEAK = 0.9
"""Above this share of the square distance left at the last block, a warning is written: the skill is hardly moved."""


@dataclass(frozen=True)
class Candidate:
    """One beta. Of the last block, at last tokens: `left` is the square distance of forget prompts' mean to retain
    prompts' over what it is without the guard, and `moved` how far retain prompts moved (`share_moved`).
    """

    beta: float
    left: float
    moved: float

    @property
    def deviation(self) -> float:
        """0 where all is as wanted; after LUNAR's Deviation Score, of states in the place of answers."""
        return math.hypot(self.left, self.moved)


@dataclass(frozen=True, kw_only=True)
class ProjectCalibration(Calibration):
    """A calibration with every probe and every beta. `reported` is the chosen one's, of the report part.

    `beyond`: by layer and side, the share of held-out windows beyond the probe's boundary.
    """

    probes: RankedProbes
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    reported: Candidate
    beyond: Mapping[int, Mapping[Side, float]]


def sites(_: ProjectOptions) -> tuple[Site, ...]:
    """What a calibration looks at."""
    return (Site.RESIDUAL,)


def boundary(probe: Probe, usual: float) -> Boundary:
    """Where a probe's logit is 0. Its value is 0 where the logit is `start`, and grows away from the skill."""
    weight_D = probe.term.weight_F.double()
    length = float(weight_D.norm())
    b = (probe.term.offset - probe.start / probe.gap) / length
    return Boundary(probe.term.layer, (-weight_D / length).float(), b, usual)


def share_beyond(probes: Sequence[Probe], held: Held, of: WindowsOf) -> dict[int, dict[Side, float]]:
    """By layer and side, the share of held-out windows beyond each probe's boundary; `held` as all probes read them."""
    even_C = torch.tensor([-each.start / each.gap for each in probes])
    shares = {side: (held.windows(of, side) < even_C).float().mean(dim=0).tolist() for side in SIDES}
    return {each.term.layer: {side: shares[side][index] for side in SIDES} for index, each in enumerate(probes)}


def _effect(beta: float, before: Mapping[Side, Tensor], after: Mapping[Side, Tensor]) -> Candidate:
    goal_D = before["retain"].mean(0)
    apart = [float((of["forget"].mean(0) - goal_D).square().sum()) for of in (before, after)]
    return Candidate(beta, apart[1] / apart[0], share_moved(before["retain"], after["retain"]))


def _prompts(examples: Sequence[Example]) -> dict[Share, dict[Side, list[TokenIds]]]:
    """Those that stand alone in a frame, so many of each share and side at most."""
    return {
        share: {
            side: evenly([each.ids for each in examples if (each.share, each.side) == (share, side) and each.source])
            for side in SIDES
        }
        for share in Share
    }


def _tokens(examples: Sequence[Example], prompts: Mapping[Share, Mapping[Side, Sequence[TokenIds]]], tried: int) -> int:
    """What all passes run over."""
    once = sum(len(each.ids) for each in examples if each.share is not Share.REPORT)
    count = {share: {side: sum(map(len, ids)) for side, ids in of.items()} for share, of in prompts.items()}
    states = (1 + tried) * sum(count[Share.THRESHOLD].values()) + 2 * sum(count[Share.REPORT].values())
    return once + count[Share.FIT]["retain"] + states


def _effects(
    last: LastTokens,
    boundaries: tuple[Boundary, ...],
    betas: Sequence[float],
    prompts: Mapping[Side, Sequence[TokenIds]],
) -> list[Candidate]:
    """What each beta does at these boundaries. One under which the stream is not finite is left out.

    Raises CalibrationError where none is left, or it is not finite without a guard.
    """
    before, found = last.at_the_end(prompts), []
    if before is None:
        raise CalibrationError(NOT_FINITE)
    for beta in betas:
        with last.model.guarded(PROBE_PROJECT, ProjectionGuard(boundaries, beta)):
            after = last.at_the_end(prompts)
        if after is not None:
            found.append(_effect(beta, before, after))
    if not found:
        raise CalibrationError(
            f"got `beta` {_list(betas)}, wanted one under which the residual stream stays finite in this dtype: name a "
            "smaller `beta`, or calibrate in a dtype of a wider range (bfloat16 or float32)"
        )
    return found


def _list(betas: Sequence[float]) -> str:
    return ", ".join(f"{each:g}" for each in betas)


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: ProjectOptions
) -> ProjectCalibration:
    """A guard that changes several layers, with its record and canaries.

    Raises DataError or CalibrationError where the examples give no guard, UnsupportedModelError for a layer that lacks
    the site.
    """
    clock = Clock()
    fitting = recipe(model.identity.layers, options.probes())
    job = prepared(model, forget, retain, options.probes(), fitting)
    examples = all_examples(job)
    prompts = _prompts(examples)
    turns = [turns_of(each.ids, model.codec.openings) for each in examples]
    betas = BETAS if options.beta is None else (options.beta,)
    clock.step("encode")
    with progress_bar(_tokens(examples, prompts, len(betas)), options.progress) as advance:
        windows, fitted = fit_windows(job, fitting, examples, turns, advance)
        clock.step("fit")
        held = read_held(job, fitted, examples, turns, (Share.THRESHOLD,), advance)
        probes = fitted.directions(held)
        assert isinstance(probes, RankedProbes)
        layers = probes.best(options.of_each_third)
        clock.step("read")
        last = LastTokens(model, options.batch_tokens, advance)
        states = last.states(tuple(sorted(layers)), prompts[Share.FIT]["retain"])
        boundaries = tuple(
            boundary(each, usual_length(states[each.term.layer])) for each in probes.probes if each.term.layer in layers
        )
        candidates = _effects(last, boundaries, betas, prompts[Share.THRESHOLD])
        best = min(candidates, key=lambda each: each.deviation)
        clock.step("choose")
        (reported,) = _effects(last, boundaries, (best.beta,), prompts[Share.REPORT])
        clock.step("report")
    guard, corpora = ProjectionGuard(boundaries, best.beta), (job.corpora["forget"], job.corpora["retain"])
    warnings = corpus_warnings(model, corpora)
    if reported.left > WEAK:
        warnings.append(
            f"{reported.left:.2f} of the square distance to the retain prompts is left at the last block: the skill is "
            "hardly moved; raise `beta` or `of_each_third`"
        )
    left_out = [each for each in betas if each not in {found.beta for found in candidates}]
    unfit = [f"beta {_list(left_out)} left out: the residual stream is not finite under it"] if left_out else []
    return finish(
        ProjectCalibration,
        PROBE_PROJECT,
        guard,
        model,
        job.frames,
        corpora,
        clock,
        notes=[
            job.dealt(),
            f"{layers_text(guard.layers)}, beta {best.beta:g}; {windows['forget']} forget and {windows['retain']} "
            f"retain {fitting.aggregation.fitted} were fitted, {probes.note(guard.layers)}",
            f"at the last block, report part: forget {reported.left:.3f} of the square distance left, "
            f"retain moved {reported.moved:.3f} of their variance",
            *unfit,
            *at_edge("beta", best.beta, betas),
        ],
        warnings=warnings,
        probes=probes,
        candidates=tuple(candidates),
        chosen=best,
        reported=reported,
        beyond=share_beyond(probes.probes, held, fitting.aggregation.windows),
    )
