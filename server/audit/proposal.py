"""A threshold for a wanted share of false abstentions, from what a guard that only watches read of real traffic.

All traffic counts as innocent. Requests for the skill in it lower the proposal, which then refuses less than it might.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from scipy.stats import binom

from guards.artifact.manifest import ScoreQuantiles
from guards.calibration.statistics import clopper_pearson
from guards.calibration.thresholds import below
from guards.core.quantiles import value_at
from server.audit.records import Kind
from server.errors import AuditFilesError


@dataclass(frozen=True)
class Readings:
    """A guard's readings of prompts under one artifact and its taus: score over tau, ascending.

    `taus` by part, of those that were nearest to firing at least once. `other`: readings that were left out, since
    another artifact or other taus held. `answers`: answers in which the guard fired, of which nothing else is known.
    """

    guard: str
    digest: str
    taus: Mapping[str, float]
    over_tau: Sequence[float]
    other: int
    answers: int


@dataclass(frozen=True)
class Proposal:
    """What to multiply taus by, so that at most the wanted share of further prompts fires, in the mean.

    `low`, `high`: the interval of the factor at which just that share would; None where the traffic is too little to
    bound it. `hits` of `total` prompts would have fired, and `share` is their share's interval. `before`: how many of
    them fire with the taus that hold, or up to how many where a histogram does not tell.
    """

    factor: float
    low: float | None
    high: float | None
    hits: int
    total: int
    share: tuple[float, float]
    before: int


def read_readings(records: Iterable[Mapping[str, Any]], guard: str) -> Readings:
    """The readings under the artifact and taus that held last, by their times: records may be of several servers, one
    server's after another's. Raises AuditFilesError where there are none.
    """
    found: list[tuple[str, str, str, float, float]] = []
    answers = 0
    for each in records:
        if each.get("guard") != guard:
            continue
        if each["kind"] == Kind.SCORE and each["score"] is not None and each["tau"]:
            time, of, part = (str(each[name]) for name in ("time", "digest", "part"))
            found.append((time, of, part, float(each["score"]), float(each["tau"])))
        answers += each["kind"] in (Kind.SHADOW_HIT, Kind.ABSTENTION) and each["stage"] == "generation"
    if not found:
        raise AuditFilesError(
            f"no readings of guard {guard!r}: serve with `audit_scores` {guard}, which records each prompt's score"
        )
    found.sort(key=itemgetter(0))  # of the form that `server.audit.records.now` writes, so as text too
    digest = found[-1][1]
    taus = {part: tau for _, of, part, _, tau in found if of == digest}  # the last of each
    held = [score / tau for _, of, part, score, tau in found if of == digest and taus[part] == tau]
    return Readings(guard, digest, taus, sorted(held), len(found) - len(held), answers)


def propose(over_tau: Sequence[float], share: float, confidence: float) -> Proposal:
    """From single readings, ascending. Raises AuditFilesError where they are too few for so small a share."""
    total = len(over_tau)
    rank = _rank(total, share)
    first, last = _ranks(total, share, confidence)
    factor = _above_zero(below(over_tau[rank - 1]))
    hits = bisect_right(over_tau, factor)
    return Proposal(
        factor=factor,
        low=over_tau[first - 1] if first else None,
        high=over_tau[last - 1] if last <= total else None,
        hits=hits,
        total=total,
        share=clopper_pearson(hits, total, confidence),
        before=bisect_right(over_tau, 1.0),
    )


def propose_by_quantiles(
    counts: Mapping[float, float], quantiles: ScoreQuantiles, share: float, confidence: float
) -> Proposal:
    """From a histogram of quantiles: how many prompts lie at or below each level, as Prometheus keeps them.

    Only the histogram's own levels can be proposed. Raises AuditFilesError where none of them keeps the share, or the
    artifact cannot tell its score.
    """
    levels = sorted(level for level in counts if level <= 1)
    total = round(max(counts.values(), default=0))
    rank = _rank(total, share)
    first, last = _ranks(total, share, confidence)

    def factor(level: float) -> float | None:
        return value_at(quantiles.over_tau, quantiles.examples, level)

    kept = [level for level in levels if round(counts[level]) < rank]
    known = [level for level in kept if factor(level) is not None]
    if not known:
        raise AuditFilesError(
            f"a share of {share} lies below what is told: the histogram begins at {levels[0] if levels else '-'}, the "
            f"artifact at {1 / (quantiles.examples + 1):.4f}; record readings (`audit_scores`) and read those"
        )
    under = [level for level in levels if round(counts[level]) < first]
    over = [level for level in levels if round(counts[level]) >= last]
    hits = round(counts[known[-1]])
    found = factor(known[-1])
    assert found is not None
    now = next((round(counts[level]) for level in levels if (factor(level) or -math.inf) >= 1), total)
    return Proposal(
        factor=_above_zero(below(found)),
        low=factor(under[-1]) if under else None,
        high=factor(over[0]) if over else None,
        hits=hits,
        total=total,
        share=clopper_pearson(hits, total, confidence),
        before=now,
    )


def _rank(total: int, share: float) -> int:
    """Below the so many smallest of `total`, a further one falls with at most this chance (split conformal)."""
    rank = math.floor((total + 1) * share + 1e-9)
    if rank < 1:
        raise AuditFilesError(
            f"got {total} readings, wanted at least {math.ceil(1 / share) - 1} for a share of {share}: watch for longer"
        )
    return rank


def _above_zero(factor: float) -> float:
    """Raises AuditFilesError for what would turn a tau's sign."""
    if factor <= 0:
        raise AuditFilesError(
            f"got a factor of {factor:.4g}, wanted one above 0: more of these prompts than the wanted share look like "
            "the skill through and through; see whether they ask for it"
        )
    return factor


def _ranks(total: int, share: float, confidence: float) -> tuple[int, int]:
    """Ranks between whose values the quantile of this share lies, with this confidence (binomial); 0 and `total` + 1
    are no bound.
    """
    tail = (1 - confidence) / 2
    return int(binom.ppf(tail, total, share)), int(binom.ppf(1 - tail, total, share)) + 1
