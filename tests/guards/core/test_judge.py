"""Judging as tensors is judging one by one, for any numbers at all."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from guards.core.judge import NEVER, read, withheld
from guards.core.verdict import GuardMode, Reading, Scope, Stage, Verdict, decide

SMALLEST = 1.401298464324817e-45
LARGEST = 3.4028234663852886e38
EDGES = (0.0, -0.0, SMALLEST, -SMALLEST, 1.0, LARGEST, -LARGEST, math.inf, -math.inf, math.nan)
NUMBERS = st.sampled_from(EDGES) | st.floats(width=32)


JUDGED = st.tuples(st.sampled_from(Reading), st.sampled_from(GuardMode), st.sampled_from(Scope), st.sampled_from(Stage))
"""What a guard reads, in what mode, and which positions it judges, at one of them."""


def beside(number: float) -> st.SearchStrategy[float]:
    """A float32, and those on either side of it."""
    of = torch.tensor(number)
    around = [float(torch.nextafter(of, torch.tensor(end))) for end in (-math.inf, math.inf)]
    return st.sampled_from([number, *around])


@st.composite
def judgements(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]], list[int], list[bool] | None]:
    """Scores [R, P], taus [R or 1, P], each part's guard [P], and which guards were not heard of, if that is known."""
    guards = draw(st.integers(1, 4))
    owners = sorted([*range(guards), *draw(st.lists(st.integers(0, guards - 1), max_size=4))])
    owners = draw(st.permutations(owners))
    rows = draw(st.integers(0, 4))
    taus = [[draw(NUMBERS) for _ in owners] for _ in range(draw(st.sampled_from([1, rows])) if rows else 1)]
    scores = [
        [draw(NUMBERS | beside(taus[row % len(taus)][part])) for part in range(len(owners))] for row in range(rows)
    ]
    missing = draw(st.none() | st.lists(st.booleans(), min_size=guards, max_size=guards))
    return scores, taus, owners, missing


def tensors(
    scores: list[list[float]], taus: list[list[float]], owners: list[int], missing: list[bool] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    guards = 1 + max(owners)
    return (
        torch.tensor(scores).reshape(len(scores), len(owners)),
        torch.tensor(taus),
        torch.tensor([[float(owner == guard) for guard in range(guards)] for owner in owners]),
        None if missing is None else torch.tensor(missing),
    )


def one_reading(scores: list[float], taus: list[float], missing: bool) -> Reading:
    """The rule, in words: of one guard at one position."""
    if missing:
        return Reading.MISSING
    if any(math.isnan(score) or math.isinf(score) for score in scores) or any(map(math.isnan, taus)):
        return Reading.INVALID
    if any(score <= tau for score, tau in zip(scores, taus, strict=True)):
        return Reading.INSIDE
    return Reading.OUTSIDE


@given(judgements())
def test_reading_is_the_rule_applied_to_each_guard(
    case: tuple[list[list[float]], list[list[float]], list[int], list[bool] | None],
) -> None:
    scores, taus, owners, missing = case
    got = read(*tensors(*case))
    assert got.dtype is torch.int8
    assert got.shape == (len(scores), 1 + max(owners))
    for row, of_row in enumerate(scores):
        for guard in range(1 + max(owners)):
            mine = [part for part, owner in enumerate(owners) if owner == guard]
            wanted = one_reading(
                [of_row[part] for part in mine],
                [taus[row % len(taus)][part] for part in mine],
                missing is not None and missing[guard],
            )
            assert Reading(int(got[row, guard])) is wanted


@given(judgements())
def test_no_guard_with_a_part_that_is_not_finite_or_a_tau_that_is_no_number_passes_or_hits(
    case: tuple[list[list[float]], list[list[float]], list[int], list[bool] | None],
) -> None:
    """The claim by itself, of every guard and whatever its other parts say."""
    scores, taus, owners, missing = case
    got = read(*tensors(*case)).tolist()
    for row, of_row in enumerate(scores):
        tau_P = taus[row % len(taus)]
        for part, owner in enumerate(owners):
            if not math.isfinite(of_row[part]) or math.isnan(tau_P[part]):
                wanted = {Reading.INVALID, Reading.MISSING} if missing else {Reading.INVALID}
                assert got[row][owner] in wanted


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("other", [1.0, 9.0])
def test_a_broken_part_is_not_outvoted(bad: float, part: int, other: float) -> None:
    scores = [other, other]
    scores[part] = bad
    assert read(torch.tensor([scores]), torch.tensor([[3.0, 3.0]]), torch.ones(2, 1)).tolist() == [[Reading.INVALID]]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_what_never_hits_never_hits(score: float) -> None:
    never = torch.tensor([[NEVER]])
    assert read(torch.tensor([[score]]), never, torch.ones(1, 1)).tolist() == [[Reading.OUTSIDE]]


@pytest.mark.parametrize(("reading", "mode", "scope", "stage"), [*itertools.product(Reading, GuardMode, Scope, Stage)])
def test_a_token_is_withheld_where_the_verdict_says_so(
    reading: Reading, mode: GuardMode, scope: Scope, stage: Stage
) -> None:
    enforced = mode is GuardMode.ENFORCE and stage.within(scope)
    wanted = decide(reading, mode, stage.within(scope)) in (Verdict.ABSTAIN, Verdict.ERROR)
    got = withheld(torch.tensor([[reading]], dtype=torch.int8), torch.tensor([[enforced]]))
    assert (got.dtype, got.tolist()) == (torch.bool, [wanted])


@given(
    st.integers(0, 4).flatmap(
        lambda guards: st.lists(
            st.lists(JUDGED, min_size=guards, max_size=guards),
            min_size=1,
            max_size=6,
        )
    )
)
def test_a_row_is_withheld_where_any_of_its_guards_does(
    rows: list[list[tuple[Reading, GuardMode, Scope, Stage]]],
) -> None:
    shape = (len(rows), len(rows[0]))
    code_RG = torch.tensor([[each[0] for each in row] for row in rows], dtype=torch.int8).reshape(shape)
    enforced = [[mode is GuardMode.ENFORCE and stage.within(scope) for _, mode, scope, stage in row] for row in rows]
    wanted = [
        any(
            decide(reading, mode, stage.within(scope)) in (Verdict.ABSTAIN, Verdict.ERROR)
            for reading, mode, scope, stage in row
        )
        for row in rows
    ]
    assert withheld(code_RG, torch.tensor(enforced, dtype=torch.bool).reshape(shape)).tolist() == wanted


@given(st.integers(-128, 127).filter(lambda code: code not in list(Reading)), st.booleans())
def test_what_is_no_reading_lets_nothing_out(code: int, enforced: bool) -> None:
    assert withheld(torch.tensor([[code]], dtype=torch.int8), torch.tensor([[enforced]])).tolist() == [True]
