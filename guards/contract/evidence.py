"""What each token of a prompt adds to a score over spans: taken back out of the scores at each of its tokens.

Suffix: T tokens.

An engine tells what a guard's parts read at every token, as if the prompt ended there. Of a guard over spans one part
is the mean of the newest message (`MessageMean`). The sum of the evidence so far is as many times one less it, so
each token's own evidence is the difference of two sums. The same evidence makes the other part (`Rise`), whose readings
are made again here, to find out which stretch they are of. Where they come out otherwise, it is an error.
"""

from collections.abc import Sequence

from guards.contract.accumulate import TOKEN
from guards.contract.guard import Part
from guards.contract.spans import MessageMean, Rise
from guards.contract.turns import Turns
from guards.core.trace import PartTrace
from guards.core.verdict import Stage
from guards.errors import GuardReadingError

_TOLERANCE = 2e-3
"""Of a sum of evidence made again, relative to one more than it; readings are float32."""


def trace(
    parts: Sequence[Part], taus: Sequence[float], score_TP: Sequence[Sequence[float]], turns: Turns
) -> tuple[PartTrace, ...]:
    """Of a guard's parts those that judge prompts; `score_TP` is what each part reads at each token.

    Raises GuardReadingError where readings contradict each other.
    """
    evidence = None
    for index, part in enumerate(parts):
        if isinstance(part.over_tokens, MessageMean) and not part.over_tokens.written:
            evidence = _evidence(part.over_tokens, [row[index] for row in score_TP], turns)
    found = []
    for index, part in enumerate(parts):
        if part.reads(Stage.PROMPT):
            plain = PartTrace(part.label, taus[index], tuple(row[index] for row in score_TP))
            found.append(_explained(plain, part.over_tokens, evidence, turns))
    return tuple(found)


def _explained(plain: PartTrace, strategy: object, evidence: list[float | None] | None, turns: Turns) -> PartTrace:
    tau, last = plain.tau, len(plain.score_T) - 1
    if strategy == TOKEN:
        return PartTrace(plain.label, tau, plain.score_T, None, (last, last))
    if evidence is None:
        return plain
    if isinstance(strategy, Rise):
        span = _stretch(strategy, evidence, turns, plain.score_T)
        needed, less = (1 / tau - 1 if tau > 0 else 0.0), strategy.kappa
    elif isinstance(strategy, MessageMean):
        newest = _newest(evidence, turns)
        span = (newest[0], newest[-1]) if newest else None
        needed, less = (1 - tau) * (len(newest) + strategy.weight), 0.0
    else:
        return plain
    if needed <= 0:  # it fires on everything, so no token has a share in it
        return PartTrace(plain.label, tau, plain.score_T, None, span)
    share_T = tuple(None if each is None else (each - less) / needed for each in evidence)
    return PartTrace(plain.label, tau, plain.score_T, share_T, span)


def _evidence(mean: MessageMean, score_T: Sequence[float], turns: Turns) -> list[float | None]:
    """Each token's own; None of those that do not count: others' words, and the template's."""
    found: list[float | None] = []
    tokens, total = 0, 0.0
    own_T = (turns.written == mean.written).tolist()
    for own, opens, counted, score in zip(own_T, turns.opens.tolist(), turns.counted.tolist(), score_T, strict=True):
        if own and opens:
            tokens, total = 0, 0.0
        if own and counted:
            tokens += 1
            before, total = total, (1 - score) * (tokens + mean.weight)
            found.append(total - before)
        else:
            found.append(None)
    return found


def _stretch(
    rise: Rise, evidence: Sequence[float | None], turns: Turns, score_T: Sequence[float]
) -> tuple[int, int] | None:
    """Where the largest sum begins and ends, as `Rise` has it. Raises GuardReadingError."""
    most, current, start = 0.0, 0.0, 0
    found: tuple[int, int] | None = None
    own_T = (turns.written == rise.written).tolist()
    marks = zip(own_T, turns.changes.tolist(), evidence, score_T, strict=True)
    for at, (own, changes, each, score) in enumerate(marks):
        if own and changes:
            most, current, found = 0.0, 0.0, None
        if own and each is not None:
            if current == 0:
                start = at
            current = max(current + each - rise.kappa, 0.0)
            if current > most:
                most, found = current, (start, at)
        if abs(1 / score - 1 - most) > _TOLERANCE * (1 + most):
            raise GuardReadingError(f"token {at}: a span reads {score:.6g}, and the mean's readings make it {most:.6g}")
    return found


def _newest(evidence: Sequence[float | None], turns: Turns) -> list[int]:
    """The tokens that count of the newest message that was asked."""
    found: list[int] = []
    for at, (opens, written, each) in enumerate(
        zip(turns.opens.tolist(), turns.written.tolist(), evidence, strict=True)
    ):
        if opens and not written:
            found = []
        if each is not None:
            found.append(at)
    return found
