"""Whether a live reading agrees with the one on record."""

import math
from typing import Any

import pytest

from guards.artifact.canaries import (
    CLEAR_INSIDE,
    CLEAR_OUTSIDE,
    bound_to_text,
    canary_source,
    clear_verdict,
    disagreement,
    encode_source,
    text_difference,
)
from guards.artifact.manifest import Canary, Manifest
from guards.core.drift import DELTA_DRIFT, FEW_NEURONS, Drift
from guards.core.verdict import GuardKind, Reading
from guards.methods.registry import methods
from guards.model.encoding import TextCodec
from tests.guards.samples import CALIBRATION, manifest
from tests.guards.tiny import DATED_TEMPLATE, TEMPLATE, tiny_tokenizer

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
        pushes = entry.drift is DELTA_DRIFT
        assert entry.drift.slack == (0 if entry.kind is GuardKind.DETECTOR or pushes else SLACK)
        assert entry.drift.floor == (0.2 if pushes else 1)


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
"""Of a mean over a message, which may be below zero, where a share of the score would be no room at all."""


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
    """A tau may be about a half: in bfloat16 nine tenths of it may drift to its other side."""
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
    """Of small taus too."""
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


class TestText:
    """Whether the live template and tokenizer give a canary's ids; on an engine: `test_template.py`."""

    @staticmethod
    def bound(codec: TextCodec, *frames: str, **changes: Any) -> Manifest:
        """A manifest with a canary of each frame, as calibration writes it."""
        canaries = tuple(
            Canary(
                token_ids=encode_source(codec, source),
                scores=(2.5,),
                fires=True,
                messages=None if isinstance(source, str) else source,
                text=source if isinstance(source, str) else None,
            )
            for source in (canary_source(frame, "12+34=") for frame in frames)
        )
        update = {"frames": frames, "template_sha256": codec.chat.sha256, **changes}
        record = CALIBRATION.model_copy(update=update)
        return manifest("ksd", {}, canaries=canaries, calibration=record)

    def test_the_frame_is_part_of_the_source(self) -> None:
        codec = TextCodec(tiny_tokenizer())
        for frame in ("chat", "bare", "Q: {text}\nA:"):
            assert encode_source(codec, canary_source(frame, "12+34=")) == codec.encode_frame(frame, "12+34=")

    def test_each_kind_is_compared(self) -> None:
        codec, other = TextCodec(tiny_tokenizer()), TextCodec(tiny_tokenizer(TEMPLATE.replace("Q:", "a:")))
        of_both = self.bound(codec, "bare", "chat")
        assert text_difference(of_both, codec) is None
        assert text_difference(of_both, other) == (
            "canary 1: its messages gave 13 token ids, wanted 13; the first other one is at 1: got 4, wanted 45"
        )
        assert text_difference(self.bound(codec, "bare"), other) is None, "no chat is in it"

    def test_ids_that_only_go_on_or_end_sooner_are_others(self) -> None:
        long, short = TextCodec(tiny_tokenizer(TEMPLATE + "a")), TextCodec(tiny_tokenizer())
        for wanted, got, says in ((long, short, "got none, wanted 4"), (short, long, "got 4, wanted none")):
            assert str(text_difference(self.bound(wanted, "chat"), got)).endswith(f"is at 13: {says}")

    def test_a_model_without_a_template(self) -> None:
        of_chat = self.bound(TextCodec(tiny_tokenizer()), "chat")
        assert "no chat template" in str(text_difference(of_chat, TextCodec(tiny_tokenizer(None))))

    def test_the_digest_stands_in_where_no_canary_has_messages(self) -> None:
        codec = TextCodec(tiny_tokenizer())
        of_texts = self.bound(codec, "bare", frames=("chat", "bare"))
        assert text_difference(of_texts, codec) is None
        other = TextCodec(tiny_tokenizer(TEMPLATE + "{# #}"))
        assert str(text_difference(of_texts, other)).startswith("got chat template ")
        unrecorded = self.bound(codec, "bare", frames=("chat", "bare"), template_sha256=None)
        assert str(text_difference(unrecorded, codec)).endswith("wanted none (SHA-256)"), "nothing was proved"
        assert text_difference(self.bound(codec, "chat", "bare"), other) is None, "positive control: ids say it better"

    def test_what_is_bound(self) -> None:
        codec = TextCodec(tiny_tokenizer())
        assert bound_to_text(self.bound(codec, "bare"))
        assert bound_to_text(self.bound(codec, frames=("chat",)))
        assert not bound_to_text(self.bound(codec, frames=("bare",)))
        assert not bound_to_text(self.bound(codec, frames=("chat",), template_sha256=None))

    def test_a_template_that_writes_the_day_gives_the_same_ids_tomorrow(self) -> None:
        codec = TextCodec(tiny_tokenizer(DATED_TEMPLATE))
        source = canary_source("chat", "12+34=")
        fixed = TextCodec(tiny_tokenizer(TEMPLATE.replace("{% for", "26 07 2024\n{% for", 1)))
        assert encode_source(codec, source) == fixed.encode_frame("chat", "12+34=")
        assert codec.encode_frame("chat", "12+34=") != encode_source(codec, source), "positive control: today's"
        assert text_difference(self.bound(codec, "chat"), codec) is None
