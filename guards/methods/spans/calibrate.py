"""Calibrates a linear detector: windows of a site's vectors, directions, and how values accumulate.

The first pass keeps the mean vectors of windows of the fit part, from which directions over some layers are made.
The second reads every other example's values under each of them: one number a token. Ways of accumulating these are
compared on the threshold part by the code that serves, and rates are measured on the report part.

Suffixes: E examples, T tokens of an example.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from guards.artifact.manifest import Rate
from guards.calibration.accumulated import turns_of
from guards.calibration.activations import Activations
from guards.calibration.corpus import FORGET_DEAL, SIDES, Share, Side, resolve_frames
from guards.calibration.detector_job import layers_text, prepare, shortages
from guards.calibration.finished import Calibration, Clock, finish
from guards.calibration.grids import at_edge
from guards.calibration.having import layers_having, require_site
from guards.calibration.material import read_material
from guards.calibration.sides import Advance, progress_bar
from guards.calibration.sources import Source
from guards.calibration.statistics import auroc
from guards.calibration.surroundings import Kind
from guards.calibration.thresholds import MIN_RECALL, rate_of, too_few_for_cap
from guards.contract.turns import Turns
from guards.core.verdict import Scope
from guards.errors import CalibrationError
from guards.methods.spans.choice import Accumulation, Candidate, accumulate, best, judgements
from guards.methods.spans.directions import RECIPE
from guards.methods.spans.examples import (
    Example,
    SpanJob,
    all_examples,
    answered,
    indices,
    with_answers,
    without_room,
)
from guards.methods.spans.guard import Judgement, SpanGuard, Strategy, Windows
from guards.methods.spans.held import Held
from guards.methods.spans.options import SpanOptions
from guards.methods.spans.passes import read_values, read_windows
from guards.methods.spans.recipe import Direction, Directions, Fitted, Recipe
from guards.model.frames import CHAT_FRAME
from guards.model.sites import Site

HOLD_BACKS = (0, 8, 16, 32)
"""Tokens of an answer that a server may hold back, for which the report says how many answers that takes back whole."""


@dataclass(frozen=True)
class ReportRow:
    """What the guard does to the report part's examples of one kind. A side that the kind does not have is None."""

    name: str
    recall: Rate | None
    false_abstention: Rate | None


@dataclass(frozen=True, kw_only=True)
class SpanCalibration(Calibration):
    """A calibration with its figures. `margins_E` are evidence over what is needed to fire, by side.

    `out_E`: of the report part's forget answers in which the guard fires, how many tokens were out by then.
    """

    options: SpanOptions
    directions: Directions
    rows: tuple[ReportRow, ...]
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    answers: Accumulation | None
    judgements: tuple[Judgement, ...]
    windows: Mapping[Side, int]
    auroc: float
    margins_E: Mapping[Side, Tensor]
    out_E: Tensor


def sites(options: SpanOptions) -> tuple[Site, ...]:
    """What a calibration looks at."""
    return (Site(options.site),)


def prepared(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: SpanOptions, recipe: Recipe
) -> SpanJob:
    """The checked inputs of the passes. Raises as `detector_job.prepare` does."""
    options = replace(options, frames=resolve_frames(options, model.codec))
    if not recipe.aggregation.answers:
        options = replace(options, scope=Scope.PROMPT)
    site = Site(options.site)
    if options.layer is not None:
        require_site(model, site, [options.layer])
    return prepare(
        model,
        forget,
        [*retain, *read_material(options.material).sources],
        options,
        layers=layers_having(model, site, recipe.layers(model.identity.layers)),
        retain_deal=FORGET_DEAL,
    )


def _judges_answers(job: SpanJob, recipe: Recipe) -> bool:
    """Whether answers are told from prompts, and are to be judged."""
    told_apart = job.frames[0] == CHAT_FRAME and bool(job.model.codec.openings)
    return (
        recipe.aggregation.answers and told_apart and job.options.answers > 0 and job.options.scope is not Scope.PROMPT
    )


def _is_answer(each: Example) -> bool:
    return each.row == Kind.ANSWERS


def _is_prompt(each: Example) -> bool:
    return not _is_answer(each)


def _rows(examples: Sequence[Example], margin_E: Tensor) -> tuple[ReportRow, ...]:
    """By frame, by surrounding, and by source."""

    def rate(side: Side, holds: Callable[[Example], bool]) -> Rate | None:
        members = [index for index, each in enumerate(examples) if each.side == side and holds(each)]
        return rate_of(margin_E[members] >= 1) if members else None

    def row(name: str, holds: Callable[[Example], bool]) -> ReportRow:
        return ReportRow(name, rate("forget", holds), rate("retain", holds))

    kinds = dict.fromkeys(each.row for each in examples)
    sources = dict.fromkeys(each.source for each in examples if each.source)
    return (
        *(row(str(name), lambda each, name=name: each.row == name) for name in kinds),  # type: ignore[misc]
        *(row(name, lambda each, name=name: each.source == name) for name in sources),  # type: ignore[misc]
    )


def _tokens_out(read: Held, margin_of: Sequence[Tensor]) -> Tensor:
    """Of forget answers that fire, the answer's tokens before the one at which they do, int64 [E]."""
    out = []
    for each, margin_T in zip(read.examples, margin_of, strict=True):
        hits = (margin_T >= 1).nonzero().flatten().tolist()
        if each.side == "forget" and hits and each.own is not None:
            out.append(hits[0] + 1 - each.own[0])
    return torch.tensor(out, dtype=torch.int64)


def _warnings(
    job: SpanJob, one: Accumulation, answers: Accumulation | None, rows: Sequence[ReportRow], windows: int
) -> list[str]:
    """What the operator should know. Raises CalibrationError where the guard would keep no promise."""
    options, found = job.options, shortages(job, windows)
    for each in rows:
        recall, false = each.recall, each.false_abstention
        if recall is not None and each.name in job.frames and recall.rate < MIN_RECALL:
            raise CalibrationError(
                f"recall {recall.rate:.3f} in frame {each.name!r} is all that `max_false_abstention` "
                f"{options.max_false_abstention} allows, wanted at least {MIN_RECALL}; nothing was written (decided by "
                f"{one.decided}). Give more forget examples, take texts that need the skill out of what is retained, "
                "or raise `max_false_abstention`"
            )
        if recall is not None and recall.high < options.recall:
            found.append(f"{each.name}: recall {recall.rate:.3f}, less than `recall` {options.recall}")
        if false is not None and false.low > options.max_false_abstention:
            found.append(
                f"{each.name}: false abstention {false.rate:.3f}, more than `max_false_abstention` "
                f"{options.max_false_abstention}: its texts may need the skill"
            )
    if answers is None and options.scope is not Scope.PROMPT:
        found.append(
            'answers are not judged by taus of their own: that needs `answers` above 0, the frame "chat" first, a '
            "chat template whose special tokens tell answers from questions, and a model that answers both sides"
        )
    if answers is not None:
        found += too_few_for_cap(answers.retained, options.max_false_abstention, "answers to retain examples")
    for of, what in ((one, "prompts"), (answers, "answers")):
        if of is not None and of.margin < 1:
            found.append(
                f"{what}: `recall` {options.recall} cannot be had ({of.hardest}: {of.recalls[of.hardest]:.3f}) with "
                f"`max_false_abstention` {options.max_false_abstention}, by {of.decided}"
            )
    return found


def _unanswered(job: SpanJob, prompts: int) -> list[str]:
    """A warning of prompts that leave no room for an answer, where there are any."""
    tokens, limit = job.options.answers, job.model.max_tokens
    return (
        [
            f"{prompts} prompt(s) leave no room for an answer of {tokens} tokens in the model's {limit}, so those that "
            "are answered are none of them; lower `answers`, or give shorter ones"
        ]
        if prompts
        else []
    )


def _how(of: Accumulation) -> str:
    """The numbers of its strategies, in words."""
    return ", ".join(f"{name} {each}" for name, each in of.numbers.items()) or "the last token"


def _edges(of: Accumulation, ways: Sequence[tuple[Strategy, ...]], what: str) -> list[str]:
    """Notes of numbers beyond which others might do better."""
    tried = [asdict(each) for way in ways for each in way]
    return [
        note
        for name, chosen in of.numbers.items()
        for note in at_edge(f"{what}: {name}", chosen, sorted({each[name] for each in tried if name in each}))
    ]


def _notes(
    job: SpanJob, chosen: Candidate, answers: Accumulation | None, windows: Mapping[Side, int], fitted: str, made: str
) -> list[str]:
    of = chosen.accumulation
    return [
        job.dealt(),
        "layers, accumulation and taus were chosen on the threshold parts, the rates measured on the report parts",
        "recall and false abstention are those of the frame where they are worst",
        f"prompts: {_how(of)}; taus were decided by {of.decided}",
        "answers are not judged"
        if answers is None
        else f"answers of {job.options.answers} tokens, the model's own: {_how(answers)}",
        f"{layers_text(chosen.layers)}; {windows['forget']} forget and {windows['retain']} retain {fitted} were "
        f"fitted, {made}",
    ]


def fit_windows(
    job: SpanJob, recipe: Recipe, examples: Sequence[Example], turns: Sequence[Turns], advance: Advance
) -> tuple[Mapping[Side, int], Fitted]:
    """How many windows of each side's fit part were fitted, and what. Raises CalibrationError."""
    windows: dict[Side, Windows] = {}
    for side in SIDES:
        own = indices(examples, side, Share.FIT)
        of_side = [examples[i] for i in own], [turns[i] for i in own]
        windows[side] = read_windows(job, *of_side, recipe.aggregation.windows, advance)
    fitted = recipe.fit(windows["forget"], windows["retain"], job.layers)
    return {side: len(each.weight_N) for side, each in windows.items()}, fitted


def read_held(
    job: SpanJob,
    fitted: Fitted,
    examples: Sequence[Example],
    turns: Sequence[Turns],
    shares: Sequence[Share],
    advance: Advance,
) -> Held:
    """The examples of other parts, with their values under what was fitted. Raises CalibrationError."""
    later = [i for i, each in enumerate(examples) if each.share in shares]
    of_later = [examples[i] for i in later]
    return Held(of_later, [turns[i] for i in later], read_values(job, of_later, fitted.sets, advance))


def calibrate_by(
    recipe: Recipe, model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: SpanOptions
) -> SpanCalibration:
    """A guard over one or several layers, with its record, canaries and report.

    Raises DataError or CalibrationError when the examples allow no guard that keeps what `options` promise.
    """
    clock = Clock()
    job = prepared(model, forget, retain, options, recipe)
    options, tokens = job.options, recipe.aggregation
    examples = all_examples(job)
    judges = _judges_answers(job, recipe)
    prompts, short = (answered(job, examples), without_room(job, examples)) if judges else ([], 0)
    twice = 2 * sum(len(each.ids) + options.answers for each in prompts)  # written, and then read
    clock.step("encode")
    with progress_bar(sum(len(each.ids) for each in examples) + twice, options.progress) as advance:
        if prompts:
            examples += with_answers(job, prompts, lambda done: advance(done, "answer"))
        clock.step("answer")
        turns = [turns_of(each.ids, model.codec.openings) for each in examples]
        windows, fitted = fit_windows(job, recipe, examples, turns, advance)
        clock.step("fit")
        held = read_held(job, fitted, examples, turns, (Share.THRESHOLD, Share.REPORT), advance)
    clock.step("read")
    threshold = held.of(lambda each: each.share is Share.THRESHOLD)

    def accumulation(direction: Direction, *, written: bool) -> Accumulation:
        of = threshold.of(_is_answer if written else _is_prompt).under(direction.share_C)
        return accumulate(of.examples, of.values, of.turns, options, tokens.ways(written), written=written)

    directions = fitted.directions(threshold.of(_is_prompt))
    tried = directions.candidates
    candidates = tuple(Candidate(each.terms, accumulation(each, written=False)) for each in tried)
    chosen = best(candidates)
    direction = tried[candidates.index(chosen)]
    answering = {each.side for each in threshold.examples if _is_answer(each)} == {*SIDES}
    answers = accumulation(direction, written=True) if answering else None
    of_prompts = judgements(chosen.accumulation, options.placement)
    of_answers = () if answers is None else judgements(answers, options.placement)

    reported = held.of(lambda each: each.share is Share.REPORT).under(direction.share_C)
    asked, written = reported.of(_is_prompt), reported.of(lambda each: answers is not None and _is_answer(each))
    prompt_margins, answer_margins = asked.margins(of_prompts), written.margins(of_answers) if of_answers else []
    margin_E = torch.stack([*(each_T[-1] for each_T in prompt_margins), *(each_T.amax() for each_T in answer_margins)])
    innocent = asked.of(lambda each: each.side == "retain")
    reported_examples = [*asked.examples, *written.examples]
    rows = _rows(reported_examples, margin_E)
    corpora = job.corpora["forget"], job.corpora["retain"]
    warnings = [
        *_warnings(job, chosen.accumulation, answers, rows, windows["forget"]),
        *_unanswered(job, short),
        *recipe.warnings(corpora),
    ]
    side_margins: dict[Side, Tensor] = {
        side: margin_E[[i for i, each in enumerate(reported_examples) if each.side == side]] for side in SIDES
    }
    framed = [row for row in rows if row.name in job.frames]
    clock.step("choose")
    return finish(
        SpanCalibration,
        recipe.entry,
        SpanGuard(chosen.terms, (*of_prompts, *of_answers), options.scope, Site(options.site)),
        model,
        job.frames,
        corpora,
        clock,
        notes=[
            *_notes(job, chosen, answers, windows, tokens.fitted, directions.note(chosen.layers)),
            *_edges(chosen.accumulation, tokens.ways(False), "prompts"),
            *(_edges(answers, tokens.ways(True), "answers") if answers is not None else ()),
        ],
        warnings=warnings,
        rates=(
            min((row.recall for row in framed if row.recall), key=lambda rate: rate.rate),
            max((row.false_abstention for row in framed if row.false_abstention), key=lambda rate: rate.rate),
        ),
        prompt_ratios=innocent.ratios(of_prompts),
        options=options,
        directions=directions,
        rows=rows,
        candidates=candidates,
        chosen=chosen,
        answers=answers,
        judgements=(*of_prompts, *of_answers),
        windows=windows,
        auroc=auroc(-side_margins["forget"], -side_margins["retain"]),
        margins_E=side_margins,
        out_E=_tokens_out(written, answer_margins),
    )


def calibrate(
    model: Activations, forget: Sequence[Source], retain: Sequence[Source], options: SpanOptions
) -> SpanCalibration:
    """Key Space Detection over spans; see `calibrate_by`."""
    return calibrate_by(RECIPE, model, forget, retain, options)
