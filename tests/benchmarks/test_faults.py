"""What looks for leaks would find one, and slopes are those of what was sampled."""

import pytest

from benchmarks.faults import callers
from benchmarks.faults.callers import REFUSAL, Reply
from benchmarks.faults.registry import FAULTS
from benchmarks.soak import Sample, slopes


@pytest.mark.parametrize(
    ("content", "leaked"), [("", ""), (REFUSAL, ""), ("8", "8"), (f"81{REFUSAL}", "81"), (f"\n\n{REFUSAL}", "")]
)
def test_one_token_is_a_leak(content: str, leaked: str) -> None:
    assert Reply("stop", content).leaked == leaked


@pytest.mark.parametrize(
    ("lines", "ended", "said"),
    [
        (['data: {"choices":[{"delta":{"content":"8"},"finish_reason":null}]}'], "cut", "8"),
        (['data: {"error":{"code":"guard_error"}}'], "error in stream: guard_error", ""),
        (['data: {"choices":[{"delta":{},"finish_reason":"stop"}]}', "", "data: [DONE]"], "stop", ""),
    ],
)
def test_how_a_stream_ended(lines: list[str], ended: str, said: str) -> None:
    pieces: list[str] = []
    assert callers._read(iter(lines), pieces) == ended
    assert "".join(pieces) == said


def test_both_engines_are_hurt() -> None:
    assert {fault.engine for fault in FAULTS.values()} == {"embedded", "vllm"}
    assert all(fault.wanted and fault.what for fault in FAULTS.values())


def test_a_leak_of_memory_is_a_slope_and_rest_is_none() -> None:
    samples = [Sample(i / 100, rss_mb=800 + i, descriptors=10, threads=11, tasks=4 + i % 2) for i in range(100)]
    found = slopes(samples)
    assert found["rss_mb"]["an_hour"] == pytest.approx(100)
    assert found["descriptors"] == {"first": 10, "last": 10, "most": 10, "an_hour": 0, "interval": [0, 0]}
    low, high = found["tasks"]["interval"]
    assert low <= 0 <= high
