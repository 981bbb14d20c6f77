"""The self-test proves what works and refutes what does not."""

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from guards.artifact.store import read_artifact, write_artifact
from guards.core import verdict as verdicts
from guards.core.verdict import Verdict
from server.cli.main import main
from server.create import create_engine
from server.demo import DEMO
from server.doctor import examination, properties
from server.doctor.examination import examine
from server.doctor.findings import HANGS, Finding, Outcome, Report
from server.doctor.plain import Unread, _readings, compared
from server.doctor.properties import OPTIONS
from server.engines import answer_state
from server.engines.base import Engine
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.options import EmbeddedOptions
from server.engines.request import EngineRequest, Sampling
from server.engines.stream import AnswerStream

GUARD = DEMO / "guards" / "ksd-mathematics"


def options(artifact: Path | None = GUARD) -> EmbeddedOptions:
    artifacts = () if artifact is None else (artifact,)
    return EmbeddedOptions(model=str(DEMO / "model"), artifacts=artifacts, device="cpu")


def examined(artifact: Path = GUARD) -> Report:
    return asyncio.run(examine(options(artifact), create_engine))


def refuted(report: Report) -> list[str]:
    return [finding.name for finding in report.findings if finding.outcome is Outcome.REFUTED]


@pytest.fixture(scope="module")
def sound() -> Report:
    """Examined in a process that cannot make the plain pass itself, so that it keeps no memory of that."""

    def here(*_: object) -> None:
        raise AssertionError("the plain pass is another process's")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.doctor.plain.load_model", here)
        return examined()


@pytest.mark.real
def test_the_demo_is_proved(sound: Report) -> None:
    assert refuted(sound) == []
    assert sound.sound
    proved = {finding.name for finding in sound.findings if finding.outcome is Outcome.PROVED}
    assert proved >= {
        "canaries of ksd-mathematics",
        "verdicts, one at a time",
        "verdicts, against a plain pass",
        "verdicts, batched, chunked and cached",
        "refused under hot",
        "refused under grammar",
    }


@pytest.mark.real
def test_a_report_holds_no_text_and_no_path(sound: Report) -> None:
    told = json.dumps(sound.told())
    for canary in read_artifact(GUARD).manifest.canaries:
        for message in canary.messages or ():
            assert message.content not in told
    assert str(DEMO) not in told


async def unread(_: object) -> Unread:
    """In the place of `read_plainly`."""
    return Unread("none was made", refutes=False)


@pytest.mark.real
def test_a_guard_whose_scores_are_others_is_refuted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "read_plainly", unread)
    artifact = read_artifact(GUARD)
    moved = tuple(
        canary.model_copy(update={"scores": tuple(score * 0.9 for score in canary.scores)})
        for canary in artifact.manifest.canaries
    )
    folder = tmp_path / GUARD.name
    write_artifact(folder, artifact.manifest.model_copy(update={"canaries": moved}), artifact.tensors)
    report = examined(folder)
    assert not report.sound
    assert f"canaries of {GUARD.name}" in refuted(report)


@pytest.mark.real
def test_an_engine_that_lets_tokens_out_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scores are the calibrated ones: canaries alone would call it sound."""
    decide = verdicts.decide

    def lax(*arguments: Any) -> Verdict:
        verdict = decide(*arguments)
        return Verdict.SHADOW if verdict is Verdict.ABSTAIN else verdict

    monkeypatch.setattr(answer_state, "decide", lax)
    monkeypatch.setattr(examination, "read_plainly", unread)
    report = examined()
    assert "refused under greedy" in refuted(report)
    assert f"canaries of {GUARD.name}" not in refuted(report)
    assert Finding("verdicts, against a plain pass", Outcome.SKIPPED, "not examined: none was made") in report.findings


def given(*engines: Engine) -> Callable[[object], Engine]:
    """These, in their order."""
    left = iter(engines)
    return lambda _: next(left)


@pytest.mark.real
def test_no_two_answers_have_one_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that was given up is cancelled by its id, and another one of that id would wait for ever."""
    ids: list[str] = []

    class Noting(EmbeddedEngine):
        def submit(self, request: EngineRequest) -> AnswerStream:
            ids.append(request.request_id)
            return super().submit(request)

    monkeypatch.setattr(examination, "read_plainly", unread)
    report = asyncio.run(examine(options(), given(Noting(options()), EmbeddedEngine(options(None)))))
    assert report.sound
    assert len(ids) > len(OPTIONS)
    assert len({*ids}) == len(ids)


@pytest.mark.real
def test_an_engine_that_hangs_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(EmbeddedEngine):
        def _dispatch(self, outputs: list[Any]) -> None:
            pass

    monkeypatch.setattr(examination, "read_plainly", unread)
    monkeypatch.setattr(properties, "ANSWER_SECONDS", 0.01)
    report = asyncio.run(examine(options(), given(Silent(options()))))
    assert refuted(report) == ["the engine"]
    (found,) = [each.detail for each in report.findings if each.name == "the engine"]
    assert "seconds: it hangs" in found


@pytest.mark.real
def test_an_engine_that_does_not_stop_is_refuted_and_does_not_hold_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Stuck(EmbeddedEngine):
        async def stop(self) -> None:
            await super().stop()
            await asyncio.Event().wait()

    class ExitedError(Exception):
        pass

    def exit_now(status: int) -> None:
        raise ExitedError(status)

    monkeypatch.setattr(examination, "read_plainly", unread)
    monkeypatch.setattr(examination, "STOP_SECONDS", 0.1)
    monkeypatch.setattr("server.create.create_engine", lambda _: Stuck(options()))
    monkeypatch.setattr("server.cli.doctor.os._exit", exit_now)
    file = tmp_path / "report.json"
    with pytest.raises(ExitedError):
        main(["doctor", "--report", str(file), "--model", str(DEMO / "model"), "--artifacts", str(GUARD)])
    assert HANGS in [each["name"] for each in json.loads(file.read_text())["findings"]]
    assert f"written to {file}" in capfd.readouterr().out


def test_a_checkpoint_that_transformers_cannot_load_is_not_compared(tmp_path: Path) -> None:
    """Such as a quantised one, which vLLM serves; the rest is examined."""
    folder = tmp_path / "model"
    shutil.copytree(DEMO / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    told = _readings(options().model_copy(update={"model": str(folder)}))
    assert isinstance(told, Unread)
    assert "quantised checkpoints are not supported here" in told.why
    assert compared({}, told).outcome is Outcome.SKIPPED


def test_a_plain_pass_that_fails_speaks_against_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr("server.doctor.plain.known", broken)
    found = compared({}, _readings(options()))
    assert found.outcome is Outcome.REFUTED
    assert "RuntimeError in test_doctor.py, line" in found.detail


class Full(EmbeddedEngine):
    """As on a device whose memory is taken."""

    async def start(self) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("guarded", [True, False])
def test_an_error_of_any_kind_is_a_finding(guarded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the report is written."""

    def create(given: EmbeddedOptions) -> Engine:
        return Full(given) if bool(given.artifacts) is guarded else EmbeddedEngine(given)

    monkeypatch.setattr(examination, "read_plainly", unread)
    monkeypatch.setattr("server.create.create_engine", create)
    arguments = ["--model", str(DEMO / "model"), "--artifacts", str(GUARD), "--device", "cpu"]
    file = tmp_path / "report.json"
    assert main(["doctor", "--report", str(file), *arguments]) == int(guarded)
    findings = {finding["name"]: finding for finding in json.loads(file.read_text())["findings"]}
    found = findings["the engine" if guarded else "speed"]
    assert found["outcome"] == ("refuted" if guarded else "skipped")
    assert "RuntimeError in test_doctor.py, line" in found["detail"]
    assert "CUDA out of memory" in found["detail"]


def test_a_question_is_refused_under_every_option() -> None:
    tried = {name for options in OPTIONS.values() for name in options}
    assert {field.name for field in fields(Sampling)} - tried == {"max_tokens"}, "which each of them gives"


def test_nothing_proved_is_not_sound() -> None:
    assert not Report("embedded", [Finding("device", Outcome.TOLD, "none")]).sound


def test_a_report_that_cannot_be_written_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--report", str(tmp_path / "none" / "report.json")]) == 1
    assert "got no such folder" in capsys.readouterr().err


@pytest.mark.real
def test_the_exit_status_says_it(
    sound: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Report("embedded", [*sound.findings, Finding("one more", Outcome.REFUTED, "is not so")])
    for report, status in ((sound, 0), (wrong, 1)):

        async def told(*_: object, report: Report = report) -> Report:
            return report

        monkeypatch.setattr("server.doctor.examination.examine", told)
        file = tmp_path / "report.json"
        assert main(["doctor", "--report", str(file)]) == status
        assert json.loads(file.read_text()) == report.told()
        assert ("NOT SOUND: 1 refuted" in capsys.readouterr().out) is (status == 1)
