"""Whether a live reading agrees with the one on record."""

import math

import pytest

from guards.artifact.canaries import CLEAR_INSIDE, CLEAR_OUTSIDE, clear_verdict, disagreement
from guards.artifact.manifest import Canary
from guards.core.drift import FEW_NEURONS, Drift
from guards.core.verdict import GuardKind, Reading
from guards.methods.registry import methods

HIT = Canary(token_ids=(1, 2), scores=(2.0, 8.0), fires=True)
MISS = Canary(token_ids=(1, 2), scores=(7.0, 8.0), fires=False)
SHIFTED = Canary(token_ids=(1, 2), scores=(40.0,), fires=True)
SCORES = Drift()
SHARE = {"float32": 2e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""What a score may drift by on another engine, by dtype."""
SLACK = 2
"""Neurons that may fall the other way beside."""


def test_that_much_is_every_shipped_methods_drift() -> None:
    for entry in methods().values():
        assert entry.drift.relative == SHARE
        assert entry.drift.slack == (0 if entry.kind is GuardKind.DETECTOR else SLACK)
        assert entry.drift.floor == 1


def detector(
    canary: Canary, reading: Reading, *scores: float, dtype: str = "float32", alone: bool = True
) -> str | None:
    """A detector's reading against a canary."""
    return disagreement(canary, reading, scores, dtype=dtype, kind=GuardKind.DETECTOR, drift=SCORES, alone=alone)


def intervention(canary: Canary, reading: Reading, *scores: float) -> str | None:
    """An intervention's reading against a canary."""
    kind = GuardKind.INTERVENTION
    return disagreement(canary, reading, scores, dtype="float32", kind=kind, drift=FEW_NEURONS, alone=True)


def test_the_recorded_reading_agrees() -> None:
    assert detector(HIT, Reading.INSIDE, 2.0, 8.0) is None
    assert detector(MISS, Reading.OUTSIDE, 7.0, 8.0) is None
    assert intervention(SHIFTED, Reading.OUTSIDE, 40) is None


@pytest.mark.parametrize("reading", [Reading.MISSING, Reading.INVALID])
@pytest.mark.parametrize("alone", [True, False])
def test_no_reading_disagrees_whatever_the_scores(reading: Reading, alone: bool) -> None:
    complaint = detector(HIT, reading, 2.0, 8.0, alone=alone)
    assert complaint == f"got no finite reading ({reading.name}), wanted scores [2.0, 8.0]"


@pytest.mark.parametrize("alone", [True, False])
def test_the_other_verdict_disagrees(alone: bool) -> None:
    assert (
        detector(HIT, Reading.OUTSIDE, 2.0, 8.0, alone=alone) == "got a guard that does not fire, wanted the opposite"
    )
    assert detector(MISS, Reading.INSIDE, 7.0, 8.0, alone=alone) == "got a guard that fires, wanted the opposite"


@pytest.mark.parametrize("scores", [(), (2.0,), (2.0, 8.0, 8.0)])
def test_another_number_of_cubes_disagrees(scores: tuple[float, ...]) -> None:
    assert detector(HIT, Reading.INSIDE, *scores) == f"got {len(scores)} score(s), wanted 2"


@pytest.mark.parametrize("dtype", sorted(SHARE))
def test_scores_may_drift_by_the_dtypes_tolerance(dtype: str) -> None:
    drift = SHARE[dtype]
    for sign in (1, -1):
        assert detector(HIT, Reading.INSIDE, 2.0, 8 * (1 + sign * 0.99 * drift), dtype=dtype) is None
        assert detector(HIT, Reading.INSIDE, 2.0, 8 * (1 + sign * 1.01 * drift), dtype=dtype) is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_score_disagrees(bad: float) -> None:
    assert detector(HIT, Reading.INSIDE, 2.0, bad) is not None


def test_beside_an_intervention_only_the_verdict_counts() -> None:
    assert detector(HIT, Reading.INSIDE, 2.5, 3.0) is not None
    assert detector(HIT, Reading.INSIDE, 2.5, 3.0, alone=False) is None


def test_a_few_neurons_may_fall_the_other_way() -> None:
    assert intervention(SHIFTED, Reading.OUTSIDE, 40 - SLACK) is None
    assert intervention(SHIFTED, Reading.OUTSIDE, 40 - SLACK - 1) == "got score 37, wanted 40"
    assert intervention(SHIFTED, Reading.OUTSIDE, 0) == "got a guard that does not fire, wanted the opposite"


NEAR_ZERO = Canary(token_ids=(1, 2), scores=(-1e-4,), fires=True)
"""A pooled guard's: 0 is the forget set's mean, where a share of the score would be no room at all."""


@pytest.mark.parametrize("dtype", sorted(SHARE))
@pytest.mark.parametrize("wanted", [-1e-4, 0.0, 0.3, -0.9])
def test_a_small_score_may_drift_by_that_share_of_one(dtype: str, wanted: float) -> None:
    canary, drift = NEAR_ZERO.model_copy(update={"scores": (wanted,)}), SHARE[dtype]
    for sign in (1, -1):
        assert detector(canary, Reading.INSIDE, wanted + sign * 0.99 * drift, dtype=dtype) is None
        assert detector(canary, Reading.INSIDE, wanted + sign * 1.01 * drift, dtype=dtype) is not None


def test_a_small_score_hides_no_broken_reading() -> None:
    assert detector(NEAR_ZERO, Reading.INSIDE, math.nan) is not None
    assert detector(NEAR_ZERO, Reading.INVALID, -1e-4) is not None
    assert detector(NEAR_ZERO, Reading.OUTSIDE, -1e-4) is not None
    assert detector(NEAR_ZERO, Reading.INSIDE, 0.4, alone=False) is None


TAUS = (0.02, 0.1, 0.3, 0.47, 0.51, 0.9, 1.0, 3.0, 7.5)
SHARES = (-1.0, 0.0, 0.5, 0.89, 0.9, 0.95, 1.0, 1.05, 1.1, 1.11, 1.5, 3.0, 20.0)


@pytest.mark.parametrize("dtype", sorted(SHARE))
def test_no_score_that_agrees_with_a_clear_canary_has_the_other_verdict(dtype: str) -> None:
    """A pooled guard's tau is about a half: in bfloat16 nine tenths of it may drift to its other side."""
    told = set()
    for tau in TAUS:
        for share in SHARES:
            wanted = share * tau
            fires = clear_verdict((wanted,), (tau,), dtype=dtype, drift=SCORES)
            told.add(fires)
            if fires is None:
                continue
            canary = Canary(token_ids=(1,), scores=(wanted,), fires=fires)
            for step in range(-20, 21):
                score = wanted + step * 0.1 * SCORES.of(wanted, dtype)
                reading = Reading.INSIDE if score <= tau else Reading.OUTSIDE
                near = detector(canary, Reading.INSIDE if fires else Reading.OUTSIDE, score, dtype=dtype) is None
                assert not near or (reading is Reading.INSIDE) is fires, (tau, share, score)
    assert told == {True, False, None}, "positive control"


def test_in_float32_nine_and_eleven_tenths_are_clear() -> None:
    """As they have been chosen for the demo, whose taus are about a half."""
    for tau in (0.47, 0.51, 3.0, 7.5):
        for share in SHARES:
            ratio = share * tau / tau
            wanted = ratio <= CLEAR_INSIDE if ratio <= CLEAR_INSIDE or ratio >= CLEAR_OUTSIDE else None
            assert clear_verdict((share * tau,), (tau,), dtype="float32", drift=SCORES) is wanted


def test_of_several_parts_one_inside_fires_and_all_must_be_outside() -> None:
    assert clear_verdict((1.0, 9.0), (3.0, 3.0), dtype="bfloat16", drift=SCORES) is True
    assert clear_verdict((2.9, 9.0), (3.0, 3.0), dtype="bfloat16", drift=SCORES) is None
    assert clear_verdict((9.0, 9.0), (3.0, 3.0), dtype="bfloat16", drift=SCORES) is False


@pytest.mark.parametrize("dtype", sorted(SHARE))
@pytest.mark.parametrize(("moved", "clear"), [(0, None), (2, None), (3, True), (40, True)])
def test_an_intervention_is_clear_where_it_moves_more_than_may_differ(
    dtype: str, moved: int, clear: bool | None
) -> None:
    assert clear_verdict((moved,), (), dtype=dtype, drift=FEW_NEURONS) is clear
