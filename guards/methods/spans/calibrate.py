"""Calibrates Key Space Detection over spans: windows of key vectors, a direction, and how values accumulate.

Two passes. The first keeps the mean key vectors of windows of the fit part, from which directions over some layers are
made. The second reads every other example's values under each of them: one number a token.

Suffixes: E examples, T tokens of an example, N windows, F feed-forward width (d_ff), C candidates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from guards.artifact.manifest import Rate
from guards.calibration.accumulated import read_texts, turns_of
from guards.calibration.activations import Activations, Pass, Tokens
from guards.calibration.corpus import FORGET_DEAL, Share, Side
from guards.calibration.detector_job import layers_text, prepare, shortages
from guards.calibration.finished import Calibration, Clock, finish
from guards.calibration.material import read_material
from guards.calibration.sides import Advance, progress_bar
from guards.calibration.sources import Source
from guards.calibration.statistics import auroc, conformal_tau
from guards.calibration.thresholds import MIN_RECALL, false_abstention_bound, rate_of
from guards.contract.spans import MessageMean, Rise
from guards.contract.turns import Turns
from guards.errors import CalibrationError
from guards.methods.spans.entry import SPANS
from guards.methods.spans.examples import Example, SpanJob, all_examples, chosen
from guards.methods.spans.guard import DiscriminantFitter, Judgement, LayerWeights, SpanGuard, Windows
from guards.methods.spans.options import QUESTION_FRAME, SpanOptions
from guards.model.encoding import BARE_FRAME, CHAT_FRAME
from guards.model.sites import Site

WINDOW = 16
"""Tokens of a window (Cunningham et al. 2026, arXiv 2601.04603)."""
FIT_WINDOWS = 3000
"""Windows a side that are fitted, dealt evenly: a fit solves for as many unknowns as there are windows."""
CANDIDATE_LAYERS = 4
"""Layers that are looked at where none is given: this many of the upper two thirds, evenly spaced, the last among
them."""
KAPPAS = (0.3, 0.4, 0.5, 0.6, 0.7)
WEIGHTS = (1.0, 3.0, 6.0)
LENGTHS = (128, 512)
"""Where texts become longer ones, in tokens: the cap holds for those of each length."""
LEAST_RISE, LEAST_MEAN = 1.0, 0.1
"""Evidence below which nothing fires, whatever the retain texts allow: that of one token, a tenth of the skill's."""


@dataclass(frozen=True)
class Candidate:
    """Layers and ways of accumulating, with what they leave: chosen by `margin` on the threshold part.

    `limits`: the evidence that no retain text of the threshold part passes, of its best stretch and of its mean, and
    `decided` which texts set each. `margin`: the evidence of the forget examples that the recall needs, in the kind in
    which they have least, over these; 1 or more where both promises can be kept.
    """

    terms: tuple[LayerWeights, ...]
    rise: Rise
    mean: MessageMean
    limits: tuple[float, float]
    decided: tuple[str, str]
    margin: float
    hardest: str

    @property
    def layers(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(term.layer for term in self.terms)


@dataclass(frozen=True)
class ReportRow:
    """What the guard does to the report part's examples of one kind. A side that the kind does not have is None."""

    name: str
    recall: Rate | None
    false_abstention: Rate | None


@dataclass(frozen=True, kw_only=True)
class SpanCalibration(Calibration):
    """A calibration with its figures. `margins_E` are evidence over what is needed to fire, by side."""

    options: SpanOptions
    rows: tuple[ReportRow, ...]
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    windows: Mapping[Side, int]
    auroc: float
    margins_E: Mapping[Side, Tensor]


def candidate_layers(count: int) -> tuple[int, ...]:
    """Of a model of `count` layers: CANDIDATE_LAYERS of its upper two thirds, evenly spaced, the last among them."""
    first, last = count // 3, count - 1
    wanted = min(CANDIDATE_LAYERS, last - first + 1)
    return tuple(last - round(i * (last - first) / max(1, wanted - 1)) for i in reversed(range(wanted)))


def windows_of(turns: Turns) -> Tensor:
    """The window of each token of a prompt, counted from 0, int64 [T]; -1 where it is of none.

    Windows are of the text of the newest message, of WINDOW tokens or a little more or less.
    """
    counted_T = turns.counted & ~turns.written
    opened = (turns.opens & ~turns.written).nonzero().flatten().tolist()
    if opened:
        counted_T[: opened[-1] + 1] = False
    tokens = int(counted_T.sum())
    window_T = torch.full_like(counted_T, -1, dtype=torch.int64)
    window_T[counted_T] = torch.arange(tokens) * max(1, round(tokens / WINDOW)) // max(1, tokens)
    return window_T


def _by_example(example_T: Tensor) -> list[tuple[int, int]]:
    """Examples of a batch, whose tokens lie together, and how many each has."""
    example_E, count_E = torch.unique_consecutive(example_T.cpu(), return_counts=True)
    return list(zip(example_E.tolist(), count_E.tolist(), strict=True))


def _windows(
    job: SpanJob, examples: Sequence[Example], turns: Sequence[Turns], side: Side, advance: Advance
) -> Windows:
    """The fit part's windows of a side. Every source counts the same, and so do examples of a surrounding."""
    members = chosen(examples, side, Share.FIT)
    window_of: list[Tensor] = []
    source_N: list[str] = []
    for index in members:
        window_T = windows_of(turns[index])
        window_of.append(torch.where(window_T >= 0, window_T + len(source_N), -1))
        source_N += [examples[index].source] * (int(window_T.max()) + 1)
    count = len(source_N)
    kept = torch.linspace(0, count - 1, min(count, FIT_WINDOWS), dtype=torch.float64).round().long()
    row_N = torch.full((count + 1,), -1).index_put((kept,), torch.arange(len(kept)))
    window_of = [row_N[window_T] for window_T in window_of]  # the last row for -1
    tokens_T = torch.cat(window_of)
    size_N = torch.bincount(tokens_T[tokens_T >= 0], minlength=len(kept)).float()
    sums = {layer: torch.zeros(len(kept), job.model.identity.d_ff) for layer in job.layers}

    def consume(layer: int, x_TF: Tensor, example_T: Tensor) -> None:
        row_T = torch.cat([window_of[example] for example, _ in _by_example(example_T)])
        inside_T = row_T >= 0
        sums[layer].index_add_(0, row_T[inside_T], x_TF.cpu()[inside_T].float())

    wanted = Pass(Site.KEY, job.layers, Tokens.ALL, batch_tokens=job.options.batch_tokens)
    job.model.stream(wanted, [examples[i].ids for i in members], consume, lambda tokens: advance(tokens, "fit"))
    if not all(bool(torch.isfinite(each).all()) for each in sums.values()):
        raise CalibrationError("a key vector is not finite: the model overflows on this data in this dtype")
    names = [source_N[i] for i in kept.tolist()]
    weight_N = torch.tensor([1 / names.count(name) for name in names], dtype=torch.float64)
    return Windows({layer: sum_NF / size_N[:, None] for layer, sum_NF in sums.items()}, weight_N)


def _values(
    job: SpanJob, examples: Sequence[Example], sets: Sequence[tuple[LayerWeights, ...]], advance: Advance
) -> list[Tensor]:
    """Each example's values under each set of layers, float32 [T, C]."""
    values = [torch.zeros(len(each.ids), len(sets)) for each in examples]
    at = {layer: [i for i, terms in enumerate(sets) if layer in [term.layer for term in terms]] for layer in job.layers}
    term_at = {
        layer: [next(term for term in sets[i] if term.layer == layer) for i in members] for layer, members in at.items()
    }

    def consume(layer: int, x_TF: Tensor, example_T: Tensor) -> None:
        weight_FC = torch.stack([term.weight_F for term in term_at[layer]], dim=1).to(x_TF.device)
        offset_C = torch.tensor([term.offset for term in term_at[layer]])
        value_TC = (x_TF.float() @ weight_FC).cpu() - offset_C
        counts = _by_example(example_T)
        for (example, _), part_TC in zip(counts, torch.split(value_TC, [count for _, count in counts]), strict=True):
            values[example][:, at[layer]] += part_TC

    wanted = Pass(Site.KEY, job.layers, Tokens.ALL, batch_tokens=job.options.batch_tokens)
    job.model.stream(wanted, [each.ids for each in examples], consume, lambda tokens: advance(tokens, "read"))
    return values


def evidence(rise_E: Tensor, mean_E: Tensor) -> Tensor:
    """Of a text's best stretch and of its mean, float32 [E, 2], of what `Rise` and `MessageMean` read."""
    return torch.stack([1 / rise_E - 1, 1 - mean_E], dim=1)


def _groups(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Retain examples for which the cap holds by themselves: of a source, of a surrounding, of a length."""
    groups: dict[str, list[int]] = {}
    for index, each in enumerate(examples):
        longer = [length for length in LENGTHS if len(each.ids) > length]
        length = f"texts of more than {longer[-1]} tokens" if longer else f"texts of at most {LENGTHS[0]} tokens"
        for name in (each.source or each.row, length):
            groups.setdefault(name, []).append(index)
    return groups


def _limits(
    evidence_E2: Tensor, groups: Mapping[str, Sequence[int]], cap: float
) -> tuple[tuple[float, float], tuple[str, str]]:
    """The least evidence of each kind with which every group keeps its half of the cap, and which group set it."""
    found = []
    for part, least in enumerate((LEAST_RISE, LEAST_MEAN)):
        bounds = {
            name: -false_abstention_bound(-evidence_E2[members, part], cap / 2) for name, members in groups.items()
        }
        worst = max(bounds, key=bounds.__getitem__)
        found.append((max(bounds[worst], least), worst))
    (rise, by), (mean, mean_by) = found
    return (rise, mean), (by, mean_by)


def margins(evidence_E2: Tensor, limits: Sequence[float]) -> Tensor:
    """Evidence over what is needed to fire, of the kind of which there is more, float32 [E]."""
    return (evidence_E2 / torch.tensor(limits)).amax(dim=1)


def _candidates(
    job: SpanJob,
    sets: Sequence[tuple[LayerWeights, ...]],
    examples: Sequence[Example],
    values: Sequence[Tensor],
    turns: Sequence[Turns],
) -> list[Candidate]:
    """Every set of layers with every way of accumulating, on the threshold part alone."""
    rises = [Rise(kappa, written=False) for kappa in KAPPAS]
    means = [MessageMean(weight, written=False) for weight in WEIGHTS]
    forget, retain = (chosen(examples, side, Share.THRESHOLD) for side in ("forget", "retain"))
    groups = _groups([examples[i] for i in retain])
    rows: dict[str, list[int]] = {}
    for at, index in enumerate(forget):
        for name in {examples[index].row, examples[index].source or examples[index].row}:
            rows.setdefault(name, []).append(at)
    found = []
    for c, terms in enumerate(sets):
        read = {
            side: read_texts(
                [values[i][:, c] for i in members], [turns[i] for i in members], [*rises, *means], at="last"
            )
            for side, members in (("forget", forget), ("retain", retain))
        }
        for (i, rise), (j, mean) in product(enumerate(rises), enumerate(means, start=len(rises))):
            of = {side: evidence(read_EC[:, i], read_EC[:, j]) for side, read_EC in read.items()}
            limits, decided = _limits(of["retain"], groups, job.options.max_false_abstention)
            margin_E = margins(of["forget"], limits)
            needed = {name: -conformal_tau(-margin_E[members], job.options.recall) for name, members in rows.items()}
            hardest = min(needed, key=lambda name: needed[name])
            found.append(Candidate(terms, rise, mean, limits, decided, needed[hardest], hardest))
    return found


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The largest margin to two digits; of equals the one of the most layers, and then the first."""
    return max(candidates, key=lambda each: (round(each.margin, 2), len(each.layers)))


def judgements(candidate: Candidate, options: SpanOptions) -> tuple[Judgement, ...]:
    """With both taus: as much evidence as the retain texts never reach, or more where the recall leaves room."""
    room = max(1.0, candidate.margin)
    more = room if options.placement == "tight" else room**0.5
    rise, mean = (limit * more for limit in candidate.limits)
    return (
        Judgement(candidate.rise, float(torch.tensor(1 / (1 + rise)))),
        Judgement(candidate.mean, float(torch.tensor(max(1 - mean, 1e-3)))),
    )


def _rows(job: SpanJob, examples: Sequence[Example], margin_E: Tensor) -> tuple[ReportRow, ...]:
    """Of the report part: by frame, by surrounding, and by retain source."""
    report = [index for index, each in enumerate(examples) if each.share is Share.REPORT]

    def rate(holds: Callable[[Example], bool]) -> Rate | None:
        members = [index for index in report if holds(examples[index])]
        return rate_of(margin_E[members] >= 1) if members else None

    def row(name: str, holds: Callable[[Example], bool]) -> ReportRow:
        sides = [rate(lambda each, side=side: each.side == side and holds(each)) for side in ("forget", "retain")]  # type: ignore[misc]
        return ReportRow(name, *sides)

    names = dict.fromkeys(examples[index].row for index in report)
    sources = dict.fromkeys(examples[index].source for index in report if examples[index].source)
    return (
        *(row(name, lambda each, name=name: each.row == name) for name in names),  # type: ignore[misc]
        *(row(name, lambda each, name=name: each.source == name) for name in sources),  # type: ignore[misc]
    )


def _warnings(job: SpanJob, chosen_one: Candidate, rows: Sequence[ReportRow], windows: int) -> list[str]:
    """What the operator should know. Raises CalibrationError where the guard would keep no promise."""
    options, found = job.options, shortages(job, windows)
    for each in rows:
        if each.recall is not None and each.name in job.frames and each.recall.rate < MIN_RECALL:
            raise CalibrationError(
                f"recall {each.recall.rate:.3f} in frame {each.name!r} is all that `max_false_abstention` "
                f"{options.max_false_abstention} allows, wanted at least {MIN_RECALL}; nothing was written "
                f"({layers_text(chosen_one.layers)}; decided by {' and '.join(dict.fromkeys(chosen_one.decided))}). "
                "Give more forget examples, take texts that need the skill out of what is retained, or raise "
                "`max_false_abstention`"
            )
        if each.recall is not None and each.recall.high < options.recall:
            found.append(f"recall {each.recall.rate:.3f} {each.name}: less than `recall` {options.recall}")
        if each.false_abstention is not None and each.false_abstention.low > options.max_false_abstention:
            found.append(
                f"false abstention {each.false_abstention.rate:.3f} {each.name}: more than `max_false_abstention` "
                f"{options.max_false_abstention}: its texts may need the skill"
            )
    if chosen_one.margin < 1:
        found.append(
            f"`recall` {options.recall} cannot be had {chosen_one.hardest} with `max_false_abstention` "
            f"{options.max_false_abstention}, which {' and '.join(dict.fromkeys(chosen_one.decided))} decided"
        )
    return found


def _notes(job: SpanJob, chosen_one: Candidate, windows: Mapping[Side, int], floored: int) -> list[str]:
    return [
        job.dealt(),
        "layers, kappa, weight and taus were chosen on the threshold parts, the rates measured on the report parts",
        "recall and false abstention are those of the frame where they are worst",
        f"tau of spans was decided by {chosen_one.decided[0]}, tau of means by {chosen_one.decided[1]}",
        "answers are not judged: rates while the model writes are not measured",
        f"{layers_text(chosen_one.layers)}, kappa {chosen_one.rise.kappa}, weight {chosen_one.mean.weight}; "
        f"{windows['forget']} forget and {windows['retain']} retain windows of {WINDOW} tokens were fitted, deviation "
        f"floored in {floored} dimensions",
    ]


def sites(_: SpanOptions) -> tuple[Site, ...]:
    """What a calibration looks at."""
    return (Site.KEY,)


def _prepared(model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: SpanOptions) -> SpanJob:
    if not options.frames:
        chat = (CHAT_FRAME,) if model.codec.has_chat_template else ()
        options = replace(options, frames=(*chat, BARE_FRAME, QUESTION_FRAME))
    return prepare(
        model,
        forget,
        [*retain, *read_material(options.material).sources],
        options,
        layers=candidate_layers(model.identity.layers),
        retain_deal=FORGET_DEAL,
    )


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: SpanOptions
) -> SpanCalibration:
    """A guard over one or several layers, with its record, canaries and report.

    Raises DataError or CalibrationError when the examples allow no guard that keeps what `options` promise.
    """
    clock = Clock()
    job = _prepared(model, forget, retain, options)
    examples = all_examples(job)
    turns = [turns_of(each.ids, model.codec.openings) for each in examples]
    clock.step("encode")
    sides: tuple[Side, ...] = ("forget", "retain")
    with progress_bar(sum(len(each.ids) for each in examples), options.progress) as advance:
        windows = {side: _windows(job, examples, turns, side, advance) for side in sides}
        fitter = DiscriminantFitter(windows["forget"], windows["retain"])
        sets = [fitter.finish(each) for each in dict.fromkeys(((job.layers[-1],), job.layers[-2:], job.layers))]
        clock.step("fit")
        later = [index for index, each in enumerate(examples) if each.share is not Share.FIT]
        examples, turns = [examples[i] for i in later], [turns[i] for i in later]
        values = _values(job, examples, sets, advance)
    clock.step("read")
    candidates = tuple(_candidates(job, sets, examples, values, turns))
    one = best(candidates)
    judged = judgements(one, options)
    c = [terms is one.terms for terms in sets].index(True)
    read_E2 = read_texts([value[:, c] for value in values], turns, [one.rise, one.mean], at="last")
    taus = evidence(*torch.tensor([[each.tau] for each in judged]))[0]
    margin_E = margins(evidence(*read_E2.T), taus.tolist())
    rows = _rows(job, examples, margin_E)
    count = {side: len(each.weight_N) for side, each in windows.items()}
    warnings = _warnings(job, one, rows, count["forget"])
    held = {side: margin_E[chosen(examples, side, Share.REPORT)] for side in sides}
    framed = [row for row in rows if row.name in job.frames]
    clock.step("choose")
    return finish(
        SpanCalibration,
        SPANS,
        SpanGuard(one.terms, judged, options.scope),
        model,
        job.frames,
        (job.corpora["forget"], job.corpora["retain"]),
        clock,
        notes=_notes(job, one, count, fitter.floored(one.layers)),
        warnings=warnings,
        rates=(
            min((row.recall for row in framed if row.recall), key=lambda rate: rate.rate),
            max((row.false_abstention for row in framed if row.false_abstention), key=lambda rate: rate.rate),
        ),
        options=options,
        rows=rows,
        candidates=candidates,
        chosen=one,
        windows=count,
        auroc=auroc(-held["forget"], -held["retain"]),
        margins_E=held,
    )
