"""A new method is a folder and an entry: calibrated, stored, verified, served and shown like the shipped ones."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from guards.artifact.store import read_artifact
from guards.methods.registry import methods, names
from server.cli import main
from tests.server.engines.vllm.live import DEMO, MODEL, OTHERS, SUMS, Live, embedded, greedy, live, on_vllm
from tests.server.engines.vllm.processes import forked
from tests.toys.installed import installed

FLAGS = ("--tensor-parallel-size", "2")
"""On vLLM over two ranks: the residual stream is whole on both, key vectors are halves."""
TRACED = ("-cc.backend=eager",)
"""Served as the graph that vLLM traced, which nothing then compiles: that takes two ranks minutes."""


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, installed(tmp_path_factory.mktemp("site"), patch):
        yield


def calibrated(folder: Path, method: str, *arguments: str) -> str:
    """An artifact by the command that users have."""
    data = {skill: f"{DEMO / 'data' / skill}.calibration.jsonl" for skill in ("mathematics", "facts", "code", "en")}
    forget, *retain = data.values()
    command = ["calibrate", method, "--model", str(MODEL), "--skill", "mathematics", "--forget", forget]
    command += [word for each in retain for word in ("--retain", each)]
    command += ["--limit", "60", "--output", str(folder / method), "--frame", "chat", *arguments]
    assert main(command) == 0
    return str(folder / method)


def test_an_entry_is_all_that_the_registry_and_the_command_line_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"toy-probe", "toy-halving"} < set(names())
    assert ("toy-probe", None) in methods()
    with pytest.raises(SystemExit):
        main(["calibrate", "toy-halving", "--help"])
    assert "how many neurons of the last layer are halved (default: 8)" in capsys.readouterr().out


def check(engine: Live) -> None:
    """Sums are refused, others answered, and the intervention says what it did in its own unit."""
    answers = engine.draw([*SUMS, *OTHERS], greedy())
    assert [answer.finish.abstained_on is not None for answer in answers] == [True] * 3 + [False] * 3
    hit = answers[0].finish.abstained_on
    assert hit is not None
    assert (hit.score.guard, hit.score.method, hit.score.layers, hit.score.tau) == ("toy-probe", "toy-probe", (2, 4), 1)
    for answer in answers[3:]:
        (acted,) = answer.finish.acted
        assert (acted.guard, acted.unit) == ("toy-halving", "halves")
        assert acted.amount > 0


@pytest.mark.real
def test_both_toys_on_the_embedded_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = calibrated(tmp_path, "toy-probe", "--first", "2", "--plots")
    halving = calibrated(tmp_path, "toy-halving", "--neurons", "4")
    shown = capsys.readouterr().out
    assert "toy probe at layers" in shown
    assert "toy halving at layer" in shown
    report = json.loads((tmp_path / "toy-probe-report" / "report.json").read_text())
    assert report["toy_layers"] == [2, 4]
    assert (tmp_path / "toy-probe-report" / "toy.png").read_bytes() == b"drawn"
    assert {canary.fires for canary in read_artifact(Path(probe)).manifest.canaries} == {True, False}
    assert main(["inspect", halving]) == 0
    assert "toy-halving" in capsys.readouterr().out
    with live(embedded(probe, halving)) as engine:
        check(engine)


@pytest.mark.real
@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
def test_both_toys_on_vllm(tmp_path: Path) -> None:
    on_it = (
        "--engine",
        "vllm",
        "--dtype",
        "float32",
        "--max-model-len",
        "512",
        "--kv-cache-memory-bytes",
        str(1 << 27),
    )
    halving = calibrated(tmp_path, "toy-halving")
    with forked():
        probe = calibrated(tmp_path, "toy-probe", *on_it, *FLAGS, "--enforce-eager")
        with live(on_vllm(probe, halving, flags=(*FLAGS, *TRACED))) as engine:
            check(engine)
