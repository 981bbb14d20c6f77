"""Some hundred mutations of each kind come to nothing, and what would be a finding is one."""

import pickle
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks import report
from benchmarks.fuzz import artifact
from benchmarks.fuzz.__main__ import TARGETS, Tally, dice, run
from benchmarks.fuzz.artifact import artifacts
from benchmarks.fuzz.importer import importer
from benchmarks.fuzz.mutations import mutated, mutated_json
from benchmarks.fuzz.protocol import protocol
from benchmarks.fuzz.target import Try
from guards.esu import files
from server.engines.scripted.engine import ScriptedEngine


def tallied(target: str, attempt: Try, count: int) -> Tally:
    tally = Tally(target, seed=1)
    for _ in range(count):
        tally.add(attempt)
    return tally


@pytest.mark.parametrize("target", TARGETS)
def test_mutations_are_refused_or_mean_what_they_say(target: str, tmp_path: Path) -> None:
    with TARGETS[target](tmp_path) as attempt:
        tally = tallied(target, attempt, 300)
    assert tally.findings == []
    assert sum(tally.outcomes.values()) == 300
    assert len(tally.outcomes) > 1, "some are taken"


def test_an_artifact_that_is_loaded_without_its_seal_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "_mutate", lambda good, _: (good.files, False))
    with artifacts(tmp_path) as attempt:
        assert attempt(Random(0)) == "unchanged"
        monkeypatch.setattr(artifact, "_tried", _with_other_digest(artifact._tried))
        tally = tallied("artifact", attempt, 1)
    assert "loaded without a new seal" in tally.findings[0]


def _with_other_digest(tried: Any) -> Any:
    def other(folder: Path, good: Any, sealed: bool, changed: bool) -> str:
        good = type(good)(good.files, "0" * 64)
        return str(tried(folder, good, sealed, changed))

    return other


def test_a_pickle_that_runs_something_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with importer(tmp_path) as attempt:
        monkeypatch.setattr(files, "unpickle_arrays", lambda *_: pickle.loads(b"cos\nsystem\n(S'true'\ntR."))
        tally = tallied("importer", attempt, 10)
    assert any("something ran" in finding for finding in tally.findings)


def test_an_error_of_the_server_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> tuple[int, ...]:
        raise RuntimeError("broken")

    with protocol(tmp_path) as attempt:
        monkeypatch.setattr(ScriptedEngine, "encode_text", broken)
        tally = tallied("protocol", attempt, 100)
    assert tally.outcomes["finding"] > 0


def test_a_number_and_a_seed_are_always_the_same_mutation() -> None:
    data, value = bytes(range(200)), {"a": [1, {"b": "text"}], "c": None}
    for number in range(50):
        assert mutated(data, dice("t", 0, number)) == mutated(data, dice("t", 0, number))
        assert repr(mutated_json(value, dice("t", 0, number))) == repr(mutated_json(value, dice("t", 0, number)))
    assert value == {"a": [1, {"b": "text"}], "c": None}
    assert len({mutated(data, dice("t", 0, number)) for number in range(50)}) > 40


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    whole = run("importer", 60, seed=3)
    report.keep("fuzz.importer", [{**run("importer", 20, seed=3).row(), "seed": 3}])
    rest = run("importer", 60, seed=3)
    assert (rest.count, rest.outcomes) == (60, whole.outcomes)
