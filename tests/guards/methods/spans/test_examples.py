"""Which prompts a model answers for a calibration: enough of every retain source to tell a small rate."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

from guards.calibration.corpus import Share, Side
from guards.methods.spans import calibrate as calibrating
from guards.methods.spans.examples import (
    ANSWERED,
    ANSWERED_OF_A_SOURCE,
    Example,
    SpanJob,
    answered,
    without_room,
)

FRAME = "chat"


def _job(max_tokens: int | None = None) -> SpanJob:
    model, options = SimpleNamespace(max_tokens=max_tokens), SimpleNamespace(answers=10)
    job = SimpleNamespace(corpora=("forget", "retain"), frames=(FRAME, "bare"), model=model, options=options)
    return cast(SpanJob, job)


JOB = _job()
SOURCES = {"large": 900, "tasks": 30, "few": 5}


def _examples(side: Side, share: Share) -> list[Example]:
    return [
        Example((index,), side, share, source, row)
        for source, count in SOURCES.items()
        for index in range(count)
        for row in (FRAME, "bare")
    ]


EXAMPLES = [each for side in ("forget", "retain") for share in Share for each in _examples(side, share)]


def test_every_retain_source_is_answered_often_enough_where_taus_are_decided_and_measured() -> None:
    prompts = answered(JOB, EXAMPLES)
    for share in (Share.THRESHOLD, Share.REPORT):
        of = Counter(each.source for each in prompts if (each.side, each.share) == ("retain", share))
        assert of["large"] >= ANSWERED_OF_A_SOURCE
        assert of["tasks"] >= ANSWERED_OF_A_SOURCE, "2 of 48 are its share by size"
        assert of["few"] == SOURCES["few"]


def test_others_are_answered_by_their_share_and_none_twice() -> None:
    prompts = answered(JOB, EXAMPLES)
    assert len({id(each) for each in prompts}) == len(prompts)
    assert {each.row for each in prompts} == {FRAME}
    counts = Counter((each.side, each.share) for each in prompts)
    assert counts["forget", Share.REPORT] == counts["forget", Share.FIT] == counts["retain", Share.FIT] == ANSWERED


def test_prompts_without_room_for_an_answer_are_not_answered() -> None:
    """vLLM refuses them, after all others were answered, and on transformers positions end before."""
    long = [replace(each, ids=each.ids * 21) for each in EXAMPLES if each.source == "few"]
    fitting = [replace(each, ids=each.ids * 20) for each in EXAMPLES if each.source == "tasks"]
    prompts = answered(_job(30), [*long, *fitting])
    assert {len(each.ids) for each in prompts} == {20}
    assert {len(each.ids) for each in answered(_job(31), [*long, *fitting])} == {20, 21}, "positive control"
    in_frame = sum(each.row == FRAME for each in long)
    assert (without_room(_job(30), [*long, *fitting]), without_room(_job(31), [*long, *fitting])) == (in_frame, 0)
    assert without_room(_job(), long) == 0
    (said,) = calibrating._unanswered(_job(30), in_frame)
    assert said.startswith(f"{in_frame} prompt(s) leave no room for an answer of 10 tokens")
    assert calibrating._unanswered(_job(31), 0) == []
