"""From finished items to results: one JSON-able object, the same bytes for the same items but for `timings`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from guards.artifact.manifest import Rate
from guards.calibration.statistics import auroc
from guards.errors import DataError
from server.errors import EvaluationError
from server.evaluation.arms import BASELINE, Arm, ArmGuard
from server.evaluation.folder import Record
from server.evaluation.measures import Toxicity, above_chance, deviation_score, rate_of, relative, s_unlearning
from server.evaluation.options import EvaluationOptions
from server.evaluation.runner import Timing
from server.evaluation.scorer import Scorer
from server.evaluation.scoring import answers_of, toxicity_of
from server.evaluation.suites import Suite

Own = Mapping[str, tuple[str, ...]]
"""Arm -> labels of the suites that measure what it is to forget."""
_PLACES = 6
"""Decimals kept: more would differ between machines."""


@dataclass(frozen=True)
class _Found:
    """One arm's answers by suite: the first to each prompt, and of suites whose answers are scored their toxicity."""

    records: Mapping[str, Sequence[Record]]
    toxicity: Mapping[str, Toxicity]


def skill_name(skill: str) -> str:
    """Skills compare without the prefix that calibration examples give to languages."""
    return skill.removeprefix("language-")


def own_suites(arms: Sequence[Arm], suites: Sequence[Suite], named: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """By the skills' names, or as `--own GUARD=LABEL[,LABEL]` says; GUARD=none for a guard whose skill is not measured.

    Raises DataError where an arm's skill is no suite's and nothing was said: every abstention would look false.
    """
    guarded = [arm for arm in arms if arm.name != BASELINE]
    labels = {suite.label for suite in suites}
    said = {}
    for text in named:
        name, _, value = text.partition("=")
        chosen = () if value == "none" else tuple(value.split(","))
        if name not in [arm.name for arm in guarded] or not set(chosen) <= labels or name in said:
            rows, columns = ", ".join(arm.name for arm in guarded), ", ".join(sorted(labels))
            raise DataError(
                f"--own: got {text!r}, wanted GUARD=LABEL[,LABEL] once, of {rows} and {columns}, or GUARD=none"
            )
        said[name] = chosen
    own = {}
    for arm in guarded:
        skills = {skill_name(guard.skill) for guard in arm.guards}
        found = tuple(suite.label for suite in suites if skill_name(suite.skill) in skills)
        own[arm.name] = said.get(arm.name, found)
        if not own[arm.name] and arm.name not in said:
            raise DataError(
                f"{arm.name}: no suite measures its skill {', '.join(sorted(skills))}; add one, label one so "
                f"(KIND:LABEL=SRC), or say --own {arm.name}=LABEL, or {arm.name}=none"
            )
    return own


def results_of(
    settings: Mapping[str, Any],
    arms: Sequence[Arm],
    suites: Sequence[Suite],
    options: EvaluationOptions,
    own: Own,
    records: Mapping[str, Record],
    timings: Mapping[str, Timing],
    scorer: Scorer | None,
) -> dict[str, Any]:
    """The whole of results.json."""
    found = {arm.name: _found(arm, suites, options, records, scorer) for arm in arms}
    baseline = found[BASELINE]
    guarded = [arm for arm in arms if arm.name != BASELINE]
    results = {
        "scorer": None if scorer is None else dict(scorer.described),
        "suites": [_suite(suite, baseline) for suite in suites],
        "guards": [_arm(arm, suites, options.seed, own[arm.name], baseline, found[arm.name]) for arm in guarded],
        "timings": {
            name: {"seconds": round(timing.seconds, 1), "items": timing.asked} for name, timing in timings.items()
        },
    }
    return {"settings": dict(settings), **_rounded(results)}


def _found(
    arm: Arm,
    suites: Sequence[Suite],
    options: EvaluationOptions,
    records: Mapping[str, Record],
    scorer: Scorer | None,
) -> _Found:
    firsts = {suite.label: _firsts(arm, suite, options, records) for suite in suites}
    scored = [suite for suite in suites if suite.kind.traits.toxicity]
    if scorer is None:
        assert not scored, "open_scorer refuses suites whose answers nothing scores"
        return _Found(firsts, {})
    return _Found(firsts, {suite.label: toxicity_of(arm, suite, options, records, scorer) for suite in scored})


def _firsts(arm: Arm, suite: Suite, options: EvaluationOptions, records: Mapping[str, Record]) -> list[Record]:
    """The first answer to each prompt that fits into the context, in the items' order."""
    fitting = [drawn[0] for drawn in answers_of(arm, suite, options, records)]
    if not fitting:
        raise EvaluationError(f"{suite.label}: no prompt fits into the model's context; give fewer or no --shots")
    return fitting


def _suite(suite: Suite, baseline: _Found) -> dict[str, Any]:
    before = baseline.records[suite.label]
    return {
        "label": suite.label,
        "kind": suite.kind_name,
        "skill": suite.skill,
        "items": len(before),
        "left_out": len(suite.items) - len(before),
        "rows": suite.rows,
        "repeats": suite.repeats,
        "chance": suite.chance,
        "accuracy": _rate(rate_of(_outcomes(before))),
        "unread": sum(record["read"] is None for record in before),
        "rouge1": _mean([record["rouge1"] for record in before]),
        "toxicity": _toxicity(suite, baseline),
    }


def _outcomes(records: Sequence[Record]) -> list[bool]:
    """Whether each answer is right; nothing of a suite whose answers are neither right nor wrong."""
    return [record["correct"] for record in records if record["correct"] is not None]


def _toxicity(suite: Suite, found: _Found) -> dict[str, Any] | None:
    of = found.toxicity.get(suite.label)
    return None if of is None else {**asdict(of), "probability": _rate(of.probability)}


def _arm(
    arm: Arm,
    suites: Sequence[Suite],
    seed: int,
    own: Sequence[str],
    baseline: _Found,
    found: _Found,
) -> dict[str, Any]:
    after = found.records
    others = [suite.label for suite in suites if suite.label not in own]
    ratios = {label: _ratios(arm, rows) for label, rows in after.items()}
    by_suite: dict[str, dict[str, Any]] = {}
    for suite in suites:
        label = suite.label
        rows, before = after[label], baseline.records[label]
        right = _outcomes(rows)
        ratio = relative(_outcomes(before), right, f"{seed}\n{arm.name}\n{label}")
        by_suite[label] = {
            "own": label in own,
            "accuracy": _rate(rate_of(right)),
            "relative": None if ratio is None else asdict(ratio),
            "abstained": _rate(rate_of([_abstained(record) for record in rows])),
            "unread": sum(record["read"] is None and not _abstained(record) for record in rows),
            "auroc": None if label in own else _auroc([ratios[mine] for mine in own], [ratios[label]]),
            "rouge1": _mean([record["rouge1"] for record in rows]),
            "toxicity": _toxicity(suite, found),
        }
    scores = {
        name: _scores(suites, answers, own, f"{seed}\n{arm.name}")
        for name, answers in (("guard", found), ("none", baseline))
    }
    notes = []
    if not arm.detectors:
        notes.append("it changes answers and withholds none, so it has no recall, false abstention and AUROC")
    elif not arm.scores:
        notes.append("no AUROC: the server shows scores to operators only")
    notes += [note for guard in arm.guards if (note := _moved(guard)) is not None]
    if not own:
        notes.append("no suite measures its skill")
    elif scores["guard"]["s_unlearning"] is None:
        notes.append("no S-unlearning: it needs answers that are right or wrong among the other suites")
    if scores["guard"]["deviation_score"] is None:
        notes.append("no Deviation Score: it needs answers that are texts among its own suites and among the others")
    return {
        "guard": arm.name,
        "skills": sorted({guard.skill for guard in arm.guards}),
        "methods": sorted({guard.method for guard in arm.guards}),
        "own": list(own),
        "recall": _pooled(after, own) if arm.detectors else None,
        "false_abstention": _pooled(after, others) if arm.detectors else None,
        "auroc": _auroc([ratios[label] for label in own], [ratios[label] for label in others]),
        **scores["guard"],
        "without": scores["none"],
        "suites": by_suite,
        "notes": notes,
    }


def _moved(guard: ArmGuard) -> str | None:
    """What is to be said of a guard that may judge by others than its artifact's taus."""
    if guard.hidden:
        return f"the artifact and the taus of {guard.name} are not known: the server shows them to operators only"
    assert guard.taus is not None
    if guard.taus == guard.artifact_taus:
        return None
    held, own = (", ".join(f"{tau:.6g}" for tau in taus) for taus in (guard.taus, guard.artifact_taus or ()))
    return f"{guard.name} judged by taus {held}, where the artifact has {own}"


def _scores(suites: Sequence[Suite], found: _Found, own: Sequence[str], seed: str) -> dict[str, Any]:
    """S-unlearning and Deviation Score of one arm's answers. A toxicity is no skill that could be kept."""
    mine = [suite for suite in suites if suite.label in own]
    others = [suite for suite in suites if suite.label not in own]
    kept = [suite for suite in others if suite.label not in found.toxicity]
    score = s_unlearning(*([_left(suite, found) for suite in side] for side in (mine, kept)))
    recalls = {
        label: [each["rouge1"] for each in of if each["rouge1"] is not None] for label, of in found.records.items()
    }
    of_own, of_others = ([recalls[each.label] for each in side if recalls[each.label]] for side in (mine, others))
    deviation = deviation_score(of_own, of_others, seed)
    return {
        "s_unlearning": None if score is None else asdict(score),
        "deviation_score": None if deviation is None else asdict(deviation),
    }


def _left(suite: Suite, found: _Found) -> float:
    """What is left of what a suite measures, from 0 to 1: its toxicity, or its accuracy above chance."""
    if (of := found.toxicity.get(suite.label)) is not None:
        return of.mean.value
    outcomes = _outcomes(found.records[suite.label])
    return above_chance(sum(outcomes) / len(outcomes), suite.chance)


def _abstained(record: Record) -> bool:
    return record["guard"] is not None


def _pooled(after: Mapping[str, Sequence[Record]], labels: Sequence[str]) -> dict[str, Any] | None:
    return _rate(rate_of([_abstained(record) for label in labels for record in after[label]]))


def _ratios(arm: Arm, rows: Sequence[Record]) -> list[float]:
    """The least score over tau of the arm's detectors for each prompt: the arm fires where it is at most 1."""
    seen = [[record["ratios"][name] for name in arm.detectors] for record in rows if record["ratios"] is not None]
    return [min(each) for each in seen if each]


def _auroc(own: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float | None:
    forget, retain = ([ratio for ratios in each for ratio in ratios] for each in (own, others))
    if not forget or not retain:
        return None
    return auroc(torch.tensor(forget, dtype=torch.float64), torch.tensor(retain, dtype=torch.float64))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rate(rate: Rate | None) -> dict[str, Any] | None:
    return None if rate is None else rate.model_dump()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _PLACES)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
