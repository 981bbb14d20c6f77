"""Some hundred mutations of each kind come to nothing, and what would be a finding is one."""

import json
import pickle
import signal
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from benchmarks import report
from benchmarks.fuzz import artifact
from benchmarks.fuzz.__main__ import TARGETS, Tally, dice, main, opened, run, run_guided
from benchmarks.fuzz.artifact import artifacts
from benchmarks.fuzz.guided import mutation
from benchmarks.fuzz.importer import importer
from benchmarks.fuzz.mutations import mutated, mutated_json
from benchmarks.fuzz.protocol import protocol
from benchmarks.fuzz.target import FindingError, Try
from guards.esu import files
from server.engines.scripted.engine import ScriptedEngine


def tallied(target: str, attempt: Try, count: int) -> Tally:
    tally = Tally(target, seed=1)
    for _ in range(count):
        tally.add(attempt)
    return tally


@pytest.mark.parametrize("target", TARGETS)
def test_mutations_are_refused_or_mean_what_they_say(target: str) -> None:
    with opened(target) as (inputs, _):
        tally = tallied(target, inputs.attempt, 300)
    assert tally.findings == []
    assert sum(tally.outcomes.values()) == 300
    assert len(tally.outcomes) > 1, "some are taken"


def test_an_artifact_that_is_loaded_without_its_seal_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with artifacts(tmp_path) as inputs:
        assert inputs.tried(inputs.good[0]) == "unchanged"
        monkeypatch.setattr(artifact, "_tried", _with_other_digest(artifact._tried))
        tally = tallied("artifact", lambda _: inputs.tried(inputs.good[0]), 1)
    assert "loaded without a new seal" in tally.findings[0]


def _with_other_digest(tried: Any) -> Any:
    def other(folder: Path, good: Any, sealed: bool, changed: bool) -> str:
        good = type(good)(good.files, "0" * 64)
        return str(tried(folder, good, sealed, changed))

    return other


def test_a_pickle_that_runs_something_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with importer(tmp_path) as inputs:
        monkeypatch.setattr(files, "unpickle_arrays", lambda *_: pickle.loads(b"cos\nsystem\n(S'true'\ntR."))
        tally = tallied("importer", inputs.attempt, 10)
    assert any("something ran" in finding for finding in tally.findings)


def test_an_error_of_the_server_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> tuple[int, ...]:
        raise RuntimeError("broken")

    with protocol(tmp_path) as inputs:
        monkeypatch.setattr(ScriptedEngine, "encode_text", broken)
        tally = tallied("protocol", inputs.attempt, 100)
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


@pytest.mark.parametrize(
    ("target", "outcomes"),
    [
        ("artifact", {"unchanged", "loaded, sealed anew", "refused, sealed anew"}),  # with the old signature
        ("importer", {"unchanged"}),
        ("protocol", {"200"}),
    ],
)
def test_what_a_guided_run_starts_from_is_good(target: str, outcomes: set[str]) -> None:
    with opened(target) as (inputs, _):
        assert {inputs.tried(good) for good in inputs.good} == outcomes
        assert len(set(inputs.good)) == len(inputs.good)


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_bytes_a_fuzzer_makes_are_an_input(target: str) -> None:
    chance = Random(0)
    with opened(target) as (inputs, _):
        for data in (b"", *(bytes([first]) + chance.randbytes(9) for first in range(256))):
            assert inputs.tried(data)
        for first in range(256):
            assert inputs.tried(bytes([first]) + b"[" * 100_000), "JSON that is too deep to be read"
            assert inputs.tried(bytes([first]) + b"[]")


def test_an_input_is_changed_as_json_as_bytes_and_as_the_fuzzer_does() -> None:
    """The first byte, which says what it is, is the fuzzer's to change. What grows too long is left to the fuzzer."""
    body, no_json = b"\x02" + json.dumps({"a": [1, 2], "b": "text"}).encode(), b"\x01\x80\x04K\x01."
    with opened("importer") as (inputs, _):

        def made(data: bytes, longest: int) -> set[bytes]:
            return {mutation(data, longest, Random(number), inputs, lambda *_: b"fuzzer's") for number in range(90)}

    ours = made(body, 4096) - {b"fuzzer's"}
    assert 30 < len(ours) < 90
    assert {each[:1] for each in ours} == {b"\x02"}
    assert sum(_is_json(each[1:]) for each in ours) > 15
    assert any(fragment in each for each in made(no_json, 4096) for fragment in inputs.fragments)
    assert made(body, 1) == {b"fuzzer's"}


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


class PlayedAtheris(ModuleType):
    """Tries the corpus and mutations of it, without looking at what they reach; then ends as atheris does."""

    def __init__(self) -> None:
        super().__init__("atheris")
        self.tried: list[bytes] = []

    def instrument_imports(self, include: list[str]) -> nullcontext[None]:
        assert include == ["guards", "server"]
        return nullcontext()

    def Setup(self, arguments: list[str], attempt: Any, custom_mutator: Any) -> None:  # noqa: N802
        self.options = dict(each.removeprefix("-").split("=") for each in arguments[1:-1])
        self.corpus, self.attempt, self.mutator = Path(arguments[-1]), attempt, custom_mutator

    def Mutate(self, data: bytes, longest: int) -> bytes:  # noqa: N802
        return data[: longest - 1] + b"."

    def Fuzz(self) -> None:  # noqa: N802
        good = [path.read_bytes() for path in sorted(self.corpus.iterdir())]
        while len(self.tried) < int(self.options["atheris_runs"]):
            number = len(self.tried)
            data = good[number] if number < len(good) else self.mutator(good[number % len(good)], 4096, number)
            self.tried.append(data)
            self.attempt(data)
        (self.corpus / "new").write_bytes(b"")
        signal.setitimer(signal.ITIMER_REAL, 1000)
        raise SystemExit(0)


def test_a_guided_run_keeps_findings_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = PlayedAtheris()
    monkeypatch.setitem(sys.modules, "atheris", played)
    monkeypatch.setattr(report, "UNFINISHED", tmp_path)
    monkeypatch.setattr(files, "unpickle_arrays", lambda *_: pickle.loads(b"cos\nsystem\n(S'true'\ntR."))
    tally, kept = run_guided("importer", 40, seed=0)
    assert (tally.count, kept) == (40, 1)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "the fuzzer's clock is stopped"
    found = sorted(map(int, (path.name for path in (tmp_path / "fuzz.importer").iterdir())))
    assert len(found) == tally.outcomes["finding"] > 0
    data = (tmp_path / "fuzz.importer" / str(found[0])).read_bytes()
    assert data == played.tried[found[0]]
    with opened("importer") as (inputs, _), pytest.raises(FindingError, match="something ran"):
        inputs.tried(data)


def test_a_guided_run_that_ends_early_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = PlayedAtheris()
    monkeypatch.setattr(played, "Fuzz", lambda: None)
    monkeypatch.setitem(sys.modules, "atheris", played)
    monkeypatch.setattr(report, "UNFINISHED", tmp_path)
    with pytest.raises(RuntimeError, match="ended after 0 inputs, wanted 40"):
        run_guided("importer", 40, seed=0)


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: pip install -e '.[fuzzing]'")
def test_atheris_guides_and_its_process_prints_the_result(tmp_path: Path) -> None:
    into = f"from benchmarks import report; report.RESULTS = report.UNFINISHED = Path({str(tmp_path)!r})"
    code = f"from pathlib import Path; {into}; from benchmarks.fuzz.__main__ import main; main()"
    command = [sys.executable, "-c", code, "--target", "importer", "--count", "300", "--guided"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert (row["count"], row["findings"]) == (300, [])
    assert row["kept"] > 0, "guards/ tells what it takes"


def test_a_missing_atheris_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    monkeypatch.setattr(sys, "argv", ["fuzz", "--target", "importer", "--guided"])
    with pytest.raises(SystemExit, match=r"atheris: pip install -e '\.\[fuzzing\]'"):
        main()
