"""Calibrates LUNAR: a direction, one pass of sums for the solve, and layer and ridge chosen on held-out prompts.

Suffixes: T tokens, D the residual stream's width (d_model), G ridges.

Texts of both sides are dealt into fit, threshold and report parts. Directions and sums are of the fit part. A layer's
ridge is what tells the threshold part's tokens of the two sides best. The layer is that under whose change the last
block says what is wanted at the threshold part's last tokens: forget prompts near the reference prompts, retain
prompts where they were (`Candidate.deviation`). Nothing was chosen on the report part.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guards.artifact.canaries import CANARY_DATE
from guards.calibration.activations import Activations, Consumer, Pass, TokenIds, Tokens
from guards.calibration.corpus import (
    FORGET_DEAL,
    Corpus,
    Share,
    Side,
    corpus_warnings,
    encode_corpora,
    frame_tokens,
    resolve_frames,
)
from guards.calibration.finished import Calibration, Clock, finish
from guards.calibration.having import candidate_layers, layers_having, require_site
from guards.calibration.last_tokens import LastTokens, evenly, share_moved, usual_length
from guards.calibration.material import read_material, read_references
from guards.calibration.sides import Advance, progress_bar
from guards.calibration.sources import Source
from guards.calibration.statistics import auroc
from guards.errors import CalibrationError
from guards.methods.lunar.entry import LUNAR
from guards.methods.lunar.guard import LunarGuard, RidgeSums, redirection
from guards.methods.lunar.options import LunarOptions
from guards.model.sites import Site

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""What is tried, of which the choice is made on held-out tokens."""
SUM_BYTES = 4 << 30
"""Of the sums of all candidate layers: the more a model's key vectors have entries, the fewer layers are tried."""
WEAK = 0.75
"""Above this share of the way left at the last block, a warning is written: the skill is hardly redirected."""


@dataclass(frozen=True)
class Candidate:
    """One layer. `w_F` and `ridge` are of the solve; `direction_D` and `usual` as in `Factors`.

    `said`: the mean of w.k over held-out tokens of each side, 1 and 0 where it is as fitted. `left` and `moved` are of
    the last block, at the threshold part's last tokens: the mean square distance of forget prompts to the reference
    prompts' mean over what it is without the change, and that of retain prompts to where they were over their spread.
    """

    layer: int
    direction_D: Tensor
    usual: float
    w_F: Tensor
    ridge: float
    said: Mapping[Side, float]
    left: float = 1.0
    moved: float = 0.0

    @property
    def deviation(self) -> float:
        """0 where all is as wanted; after the paper's Deviation Score, of states in the place of answers."""
        return math.hypot(self.left, self.moved)

    def guard(self, options: LunarOptions) -> LunarGuard:
        """This layer's change as a guard."""
        factors = redirection(self.direction_D, self.w_F, strength=options.strength, usual=self.usual)
        return LunarGuard({self.layer: factors}, options.reference, options.strength, self.ridge)


@dataclass(frozen=True, kw_only=True)
class LunarCalibration(Calibration):
    """A calibration with every candidate. `report_left` and `report_moved` are the chosen one's, of the report part,
    and `auroc` how well w.k at last tokens tells its two sides.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    report_left: float
    report_moved: float
    auroc: float


def sites(_: LunarOptions) -> tuple[Site, ...]:
    """What a calibration looks at."""
    return Site.KEY, Site.RESIDUAL


@dataclass(frozen=True)
class _Job:
    """The checked inputs of the passes, of every frame together."""

    model: Activations
    options: LunarOptions
    frames: tuple[str, ...]
    corpora: Mapping[Side, Corpus]
    parts: Mapping[Side, Mapping[Share, list[int]]]
    reference: Sequence[TokenIds]
    lead: Mapping[str, int]
    """How many leading tokens every example of a frame shares."""
    advance: Advance = lambda *_: None

    def tokens(self, candidates: int) -> int:
        """What all passes run over: key vectors of two parts, and states of some prompts without and with a change."""
        sides: tuple[Side, ...] = ("forget", "retain")
        keys = [
            sum(len(ids[text]) for ids in self.corpora[side].encoded.values() for text in self.parts[side][share])
            for side in sides
            for share in (Share.FIT, Share.THRESHOLD)
        ]
        states = {share: _count(each for side in sides for each in self.some(side, share)) for share in Share}
        times = {Share.FIT: 1, Share.THRESHOLD: 1 + candidates, Share.REPORT: 3}
        return sum(keys) + sum(times[share] * count for share, count in states.items()) + 2 * _count(self.reference)

    def some(self, side: Side, share: Share) -> list[TokenIds]:
        """At most MOST_STATES prompts of a part, evenly spaced over its sources and frames."""
        return evenly([ids[text] for ids in self.corpora[side].encoded.values() for text in self.parts[side][share]])

    @property
    def last(self) -> LastTokens:
        """States at last tokens."""
        return LastTokens(self.model, self.options.batch_tokens, self.advance)

    def keys(self, layers: tuple[int, ...], side: Side, share: Share, consume: Consumer) -> None:
        """Key vectors of all tokens; of forget texts but those which retain texts begin with too."""
        for frame in self.frames:
            encoded, skip = self.corpora[side].encoded[frame], self.lead[frame] if side == "forget" else 0
            wanted = Pass(Site.KEY, layers, Tokens.ALL, (skip, 0), self.options.batch_tokens)
            examples = [encoded[text] for text in self.parts[side][share]]
            self.model.stream(wanted, examples, consume, lambda tokens: self.advance(tokens, "keys"))


def _count(examples: Iterable[TokenIds]) -> int:
    return sum(map(len, examples))


def _prepared(model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: LunarOptions) -> _Job:
    frames = resolve_frames(options.frames, model.codec)
    retained = [*retain, *read_material(options.material).sources]
    corpora = encode_corpora(forget, retained, frames, model.codec, model.max_tokens)
    if min(len(corpus.texts) for corpus in corpora) < len(FORGET_DEAL):
        raise CalibrationError(
            f"got {len(corpora[0].texts)} forget and {len(corpora[1].texts)} retain examples, wanted at least "
            f"{len(FORGET_DEAL)} of each, better some hundred"
        )
    dated, texts = model.codec.on_day(CANARY_DATE), read_references(options.reference).texts
    encoded = [(frame, corpora[0].encoded[frame] + corpora[1].encoded[frame]) for frame in frames]
    return _Job(
        model,
        options,
        frames,
        {"forget": corpora[0], "retain": corpora[1]},
        {"forget": corpora[0].deal(FORGET_DEAL, options.seed), "retain": corpora[1].deal(FORGET_DEAL, options.seed)},
        [dated.encode_frame(frame, text) for frame in frames for text in texts],
        {frame: frame_tokens(examples)[0] for frame, examples in encoded},
    )


def _layers(model: Activations, options: LunarOptions) -> tuple[int, ...]:
    """Those that are tried. Raises CalibrationError or UnsupportedModelError."""
    count = model.identity.layers
    if options.layer is not None:
        if not 0 <= options.layer < count:
            raise CalibrationError(f"got `layer` {options.layer}, wanted 0 to {count - 1}")
        require_site(model, Site.KEY, [options.layer])
        return (options.layer,)
    found = layers_having(model, Site.KEY, candidate_layers(count))
    most = max(1, SUM_BYTES // (8 * model.width(Site.KEY) ** 2))
    return found[-most:]


def _directions(job: _Job, layers: tuple[int, ...]) -> dict[int, tuple[Tensor, float]]:
    """From forget prompts to reference prompts, float64 [D], and the usual length of retain prompts' states."""
    forget, reference, retain = (
        job.last.states(layers, examples)
        for examples in (job.some("forget", Share.FIT), job.reference, job.some("retain", Share.FIT))
    )
    return {layer: (reference[layer].mean(0) - forget[layer].mean(0), usual_length(retain[layer])) for layer in layers}


def _solved(job: _Job, layers: tuple[int, ...]) -> dict[int, tuple[Tensor, float, dict[Side, float]]]:
    """Each layer's w, float64 [F], with the ridge that was chosen, and the mean of w.k on held-out tokens by side."""
    ridges = RIDGES if job.options.ridge is None else (job.options.ridge,)
    sums = {layer: RidgeSums(job.model.width(Site.KEY), job.model.device) for layer in layers}
    sides: tuple[Side, ...] = ("forget", "retain")
    for side in sides:

        def add(layer: int, k_TF: Tensor, _: Tensor, forget: bool = side == "forget") -> None:
            sums[layer].update(k_TF, forget=forget)

        job.keys(layers, side, Share.FIT, add)
    w_GF = {layer: each.solve(ridges) for layer, each in sums.items()}
    held = {layer: {side: torch.zeros(3, len(ridges), dtype=torch.float64) for side in sides} for layer in layers}
    for side in sides:

        def measure(layer: int, k_TF: Tensor, _: Tensor, side: Side = side) -> None:
            said_TG = (k_TF.double() @ w_GF[layer].T).cpu()
            off_TG = said_TG - (1.0 if side == "forget" else 0.0)
            held[layer][side] += torch.stack([torch.ones_like(off_TG), said_TG, off_TG.square()]).sum(dim=1)

        job.keys(layers, side, Share.THRESHOLD, measure)
    found = {}
    for layer in layers:
        error_G = torch.stack([held[layer][side][2] / held[layer][side][0] for side in sides]).sum(dim=0)
        best = int(error_G.argmin())
        said = {side: float((held[layer][side][1] / held[layer][side][0])[best]) for side in sides}
        found[layer] = w_GF[layer][best].cpu(), ridges[best], said
    return found


def _at_the_end(job: _Job, share: Share, guard: LunarGuard | None) -> dict[Side, Tensor]:
    """The last block's states at a part's last tokens, float64 [examples, D], with a change or without."""
    sides: tuple[Side, ...] = ("forget", "retain")
    with nullcontext() if guard is None else job.model.guarded(LUNAR, guard):
        return job.last.at_the_end({side: job.some(side, share) for side in sides})


def _compared(before: Mapping[Side, Tensor], after: Mapping[Side, Tensor], reference_D: Tensor) -> tuple[float, float]:
    """`left` and `moved` of a `Candidate`."""
    apart = [float((of["forget"] - reference_D).square().sum(1).mean()) for of in (before, after)]
    return apart[1] / apart[0], share_moved(before["retain"], after["retain"])


def _scores(job: _Job, candidate: Candidate) -> float:
    """AUROC of w.k at the report part's last tokens: how well it tells forget prompts from others."""
    said: dict[Side, list[Tensor]] = {"forget": [], "retain": []}
    for side, into in said.items():

        def keep(_: int, k_TF: Tensor, __: Tensor, into: list[Tensor] = into) -> None:
            into.append(-(k_TF.double().cpu() @ candidate.w_F))  # a small score is the skill's

        wanted = Pass(Site.KEY, (candidate.layer,), Tokens.LAST, batch_tokens=job.options.batch_tokens)
        job.model.stream(wanted, job.some(side, Share.REPORT), keep, lambda tokens: job.advance(tokens, "report"))
    return auroc(torch.cat(said["forget"]), torch.cat(said["retain"]))


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: LunarOptions
) -> LunarCalibration:
    """A guard that changes one layer, with its record and canaries.

    Raises DataError or CalibrationError where the examples give no guard, UnsupportedModelError for a model without a
    layer that has the sites.
    """
    clock = Clock()
    layers = _layers(model, options)
    job = _prepared(model, forget, retain, options)
    clock.step("encode")
    with progress_bar(job.tokens(len(layers)), options.progress) as advance:
        job = replace(job, advance=advance)
        directions, solved = _directions(job, layers), _solved(job, layers)
        clock.step("fit")
        end = model.identity.layers - 1
        reference_D = job.last.states((end,), job.reference)[end].mean(0)
        before = _at_the_end(job, Share.THRESHOLD, None)
        candidates = []
        for layer in layers:
            (direction_D, usual), (w_F, ridge, said) = directions[layer], solved[layer]
            each = Candidate(layer, direction_D, usual, w_F, ridge, said)
            after = _at_the_end(job, Share.THRESHOLD, each.guard(options))
            left, moved = _compared(before, after, reference_D)
            candidates.append(replace(each, left=left, moved=moved))
        chosen = min(candidates, key=lambda each: each.deviation)
        clock.step("choose")
        guard = chosen.guard(options)
        unchanged, changed = (_at_the_end(job, Share.REPORT, of) for of in (None, guard))
        left, moved = _compared(unchanged, changed, reference_D)
        told = _scores(job, chosen)
        clock.step("report")
    corpora = job.corpora["forget"], job.corpora["retain"]
    warnings = corpus_warnings(model, corpora)
    if left > WEAK:
        warnings.append(
            f"{left:.2f} of the way to the reference prompts is left at the last block: the skill is hardly "
            "redirected; raise `strength`, or name another `layer`"
        )
    notes = [
        f"layer {chosen.layer}, ridge {chosen.ridge:g}, strength {options.strength:g}, reference {options.reference}: "
        f"{len(job.reference)} prompts",
        f"w.k on held-out tokens: forget {chosen.said['forget']:.3f}, retain {chosen.said['retain']:.3f}",
        f"at the last block, report part: forget {left:.3f} of the way left, retain moved {moved:.3f} of their spread",
    ]
    return finish(
        LunarCalibration,
        LUNAR,
        guard,
        model,
        job.frames,
        corpora,
        clock,
        notes=notes,
        warnings=warnings,
        candidates=tuple(candidates),
        chosen=chosen,
        report_left=left,
        report_moved=moved,
        auroc=told,
    )
