"""What benchmarks count, on made-up measurements."""

import asyncio
import json
import math
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import overhead, report
from benchmarks.overhead import DECODE, FIRES, ROWS, interval, prompts, summarise
from benchmarks.parity import MARGIN, Answer, compare, compare_answers
from guards.core.drift import FEW_NEURONS, Drift
from guards.core.verdict import Reading, Stage
from server.engines.events import FinishReason, GuardScore

INSIDE = GuardScore("ksd", "m", "ksd", Reading.INSIDE, 4.0, 5.0, (1,), 7, Stage.PROMPT, "0" * 64)
OUTSIDE = replace(INSIDE, reading=Reading.OUTSIDE, score=6.0)
EDGE_IN, EDGE_OUT = replace(INSIDE, score=5.0 * (1 - MARGIN / 9)), replace(OUTSIDE, score=5.0 * (1 + MARGIN / 9))
DRIFTS = {"ksd": Drift(), "na": FEW_NEURONS}
ADJUSTED = GuardScore("na", "m", "neuron-adjust", Reading.OUTSIDE, 40.0, None, (1,), 7, Stage.PROMPT, "0" * 64)


def test_a_verdict_that_differs_away_from_tau_is_a_disagreement() -> None:
    (row,) = compare([{"ksd": INSIDE}, {"ksd": OUTSIDE}], [{"ksd": OUTSIDE}, {"ksd": OUTSIDE}], MARGIN, DRIFTS)
    assert (row["disagree"], row["within_margin"], row["flipped"], row["fires"]) == (1, 0, 0, 1)
    assert row["max_relative_score_difference"] == pytest.approx(2 / 5), "of tau, which is above the score"


def test_a_score_near_zero_differs_by_shares_of_tau() -> None:
    near = replace(INSIDE, score=1e-9, tau=0.5)
    (row,) = compare([{"ksd": near}], [{"ksd": replace(near, score=-1e-6)}], MARGIN, DRIFTS)
    assert row["disagree"] == 0
    assert row["max_relative_score_difference"] == pytest.approx(2e-6, rel=1e-2)


def test_a_verdict_that_differs_at_tau_is_counted_apart() -> None:
    (row,) = compare([{"ksd": EDGE_IN}, {"ksd": EDGE_OUT}], [{"ksd": EDGE_OUT}, {"ksd": EDGE_OUT}], MARGIN, DRIFTS)
    assert (row["disagree"], row["within_margin"], row["flipped"]) == (0, 2, 1)


def test_a_far_score_is_no_margin_for_the_reference() -> None:
    # The margin is about the reference: a live score at tau does not excuse a reference far from it.
    (row,) = compare([{"ksd": OUTSIDE}], [{"ksd": EDGE_IN}], MARGIN, DRIFTS)
    assert row["disagree"] == 1


@pytest.mark.parametrize(("moved", "disagree"), [(40.0, 0), (42.0, 0), (43.0, 1), (math.nan, 1)])
def test_neurons_moved_may_differ_by_a_canarys_slack(moved: float, disagree: int) -> None:
    (row,) = compare([{"na": ADJUSTED}], [{"na": replace(ADJUSTED, score=moved)}], MARGIN, DRIFTS)
    assert row["disagree"] == disagree


def test_answers_are_compared_where_their_text_is_the_same() -> None:
    hit = Answer(FinishReason.STOP, "a", {"ksd": (7, 4.0)}, 0)
    found = [replace(hit), replace(hit, hits={}), replace(hit, hits={"ksd": (8, 4.0)}), replace(hit, text="b", hits={})]
    (row,) = compare_answers([hit] * 4, found, {"ksd": Drift()})
    assert (row["answers"], row["other_text"], row["fires"], row["disagree"]) == (4, 1, 3, 2)


def test_the_overhead_is_a_median_of_pairs() -> None:
    row = summarise(DECODE, [1.0, 2.0, 4.0], [2.0, 4.0, 4.0])
    assert row["ratio"] == 0.5
    assert row["low"] == 0.5
    assert row["high"] == 1.0
    assert row["plain_tokens_per_second"] == DECODE.prompts * DECODE.drawn / 2
    assert interval([1.0]) == {"ratio": 1.0, "low": 1.0, "high": 1.0}


def test_prompts_are_the_same_for_a_seed_only() -> None:
    assert prompts(DECODE, 1) == prompts(DECODE, 1) != prompts(DECODE, 2)


class _Side:
    """An engine that is never asked."""

    def __init__(self, *_: object, **__: object) -> None: ...

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[None]:
        yield


def test_overhead_goes_on_where_the_settings_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, int]] = []

    async def one_row(_: object, __: object, name: str, ___: object, rounds: int) -> list[dict[str, Any]]:
        measured.append((name, rounds))
        return [{"guards": name, "ratio": 1.0}]

    def build_model(*_: object, **__: object) -> Any:
        return SimpleNamespace(model_dump=lambda include: dict.fromkeys(sorted(include), 1))

    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(overhead, "build_model", build_model)
    monkeypatch.setattr(overhead, "write_guards", lambda _, __, rows: dict.fromkeys(rows, ()))
    monkeypatch.setattr(overhead, "_Vllm", _Side)
    monkeypatch.setattr(overhead, "one_row", one_row)

    def run(rows: Sequence[str], rounds: int) -> None:
        shape = {"layers": 1, "d_model": 1, "d_ff": 1, "dtype": "float32"}
        args = Namespace(engine="vllm", rows=rows, rounds=rounds, many=False, eager=False, **shape)
        asyncio.run(overhead.measure(args, tmp_path / "work"))

    some = ROWS[:3]
    run(some, 1)
    run(some, 12)
    assert measured == [*((row, 1) for row in some), *((row, 12) for row in some)], "a trial's rows do not count"
    assert not (tmp_path / "overhead.json").exists()
    run(ROWS, 12)
    assert measured[6:] == [(row, 12) for row in ROWS[3:]]
    found = json.loads((tmp_path / "overhead.json").read_text())
    assert [row["guards"] for row in found["rows"]] == [row for row in ROWS if row != FIRES]
    assert found["abstained"]["guards"] == FIRES
    assert not any("of" in row for row in found["rows"])


def test_a_published_command_can_be_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["x", "--variants", "prefix cached", "--cells", "xquad-??", "--model", "/tmp/m"])
    report.publish("parity", [])
    command = json.loads((tmp_path / "parity.json").read_text())["command"]
    assert command.endswith("--variants 'prefix cached' --cells 'xquad-??' --model .../m")
