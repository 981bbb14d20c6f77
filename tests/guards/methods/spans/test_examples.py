"""Which prompts a model answers for a calibration: enough of every retain source to tell a small rate."""

from collections import Counter
from types import SimpleNamespace
from typing import cast

from guards.calibration.corpus import Share, Side
from guards.methods.spans.examples import ANSWERED, ANSWERED_OF_A_SOURCE, Example, SpanJob, answered

FRAME = "chat"
JOB = cast(SpanJob, SimpleNamespace(corpora=("forget", "retain"), frames=(FRAME, "bare")))
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
