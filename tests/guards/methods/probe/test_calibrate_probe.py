"""Calibrating probes on a tiny model: promises, layers, what is judged, and artifacts that verify."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch

from guards.artifact.store import read_artifact
from guards.contract.accumulate import TOKEN
from guards.core.verdict import Scope
from guards.errors import CalibrationError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.probe.fit import RankedProbes
from guards.methods.probe.options import ProbeOptions
from guards.methods.probe.shown import cosines
from guards.methods.registry import PROBE, load_guard, method_of
from guards.methods.spans.calibrate import SpanCalibration
from guards.methods.spans.guard import SpanGuard
from guards.model.sites import Site
from tests.guards.methods.spans.test_calibrate_spans import TURNED
from tests.guards.tiny import sources, tiny_loaded
from tests.guards.verified import disagreements

CAP, RECALL = 0.2, 0.9
QUICK: dict[str, Any] = {"recall": RECALL, "max_false_abstention": CAP, "material": "none", "longest": 32}
QUICK |= {"answers": 0, "frames": ("chat",)}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(chat_template=TURNED, max_position_embeddings=1024)


def calibrated(loaded: LoadedModel, **changes: Any) -> SpanCalibration:
    made = PROBE.calibrate(
        loaded, *sources(120), ProbeOptions(**{**QUICK, "answers": 0, "frames": ("chat",), **changes})
    )
    assert isinstance(made, SpanCalibration)
    return made


@pytest.fixture(scope="module")
def last(loaded: LoadedModel) -> SpanCalibration:
    return calibrated(loaded, aggregation="last", site="attention")


def test_the_last_token_of_a_prompt_is_judged_and_no_answer(last: SpanCalibration) -> None:
    guard = last.guard
    assert isinstance(guard, SpanGuard)
    assert [(each.over_tokens, each.label) for each in guard.judgements] == [(TOKEN, "last token")]
    assert guard.scope is Scope.PROMPT
    assert "answers are not judged" in last.record.notes
    assert any("last tokens were fitted" in note for note in last.record.notes)
    assert last.record.recall is not None
    assert last.record.recall.high >= RECALL
    assert last.record.false_abstention is not None
    assert last.record.false_abstention.low <= CAP


def test_the_artifact_verifies_and_its_bytes_are_the_inputs_alone(
    loaded: LoadedModel, last: SpanCalibration, tmp_path: Path
) -> None:
    digest = last.save(tmp_path / "a", "sums")
    artifact = read_artifact(tmp_path / "a")
    assert method_of(artifact) is PROBE
    assert artifact.manifest.parameters["d_attention"] == loaded.width(Site.ATTENTION)
    assert disagreements(loaded, PROBE, last.guard, last.canaries) == []
    guard = load_guard(artifact)
    assert isinstance(guard, SpanGuard)
    assert (guard.site, guard.layers) == (Site.ATTENTION, last.chosen.layers)
    again = calibrated(loaded, aggregation="last", site="attention")
    assert again.save(tmp_path / "b", "sums") == digest


def test_probes_along_the_text_judge_as_a_guard_over_spans(loaded: LoadedModel) -> None:
    found = calibrated(loaded, answers=4)
    labels = [each.label for each in found.judgements]
    assert labels == ["prompt, span", "prompt, mean", "answer, span", "answer, mean"]
    assert isinstance(found.guard, SpanGuard)
    assert (found.guard.site, found.guard.scope) == (Site.RESIDUAL, Scope.BOTH)


def test_the_report_shows_every_probe(loaded: LoadedModel, last: SpanCalibration) -> None:
    report = PROBE.report(last)
    assert [(each["layer"], each["third"]) for each in report["probes"]] == [(0, "early"), (1, "middle"), (2, "late")]
    assert [each["layer"] for each in report["probes"] if each["chosen"]] == list(last.chosen.layers)
    assert isinstance(last.directions, RankedProbes)
    alike = cosines([each.term for each in last.directions.probes])
    torch.testing.assert_close(alike.diagonal(), torch.ones(3))
    torch.testing.assert_close(alike, alike.T)
    assert report["cosines"][0][1] == pytest.approx(float(alike[0, 1]), abs=1e-4)
    assert any("of held-out log-AUROC" in note for note in last.record.notes)
    drawn = PROBE.plots(last, "sums", loaded, *sources(120))
    assert set(drawn) == {"margins.png", "rows.png", "probes.png"}
    assert all(each.startswith(b"\x89PNG") for each in drawn.values())


def test_what_says_nothing_of_an_answer_cannot_judge_one() -> None:
    with pytest.raises(CalibrationError, match="wanted `aggregation` spans"):
        ProbeOptions(aggregation="last", scope=Scope.GENERATION)
    assert ProbeOptions(scope=Scope.GENERATION).scope is Scope.GENERATION


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"aggregation": "last", "answers": 4}, "got `answers` 4 and `aggregation` last"),
        ({"aggregation": "last", "answers_file": Path("a")}, "got `answers_file` a"),
        ({"answers": 0, "answers_file": Path("a")}, "got `answers_file` a"),
        ({"scope": Scope.PROMPT, "answers_file": Path("a")}, "got `answers_file` a"),
    ],
)
def test_what_would_be_ignored_is_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CalibrationError, match=complaint):
        ProbeOptions(**given)
    assert ProbeOptions(answers=4, answers_file=Path("a")).writes
    assert not ProbeOptions(aggregation="last", answers=0).writes


def test_without_scikit_learn_nothing_is_run(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "sklearn":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setattr(LoadedModel, "stream", lambda *_: pytest.fail("the model was run"))
    with pytest.raises(CalibrationError, match=r"pip install 'skillguard\[probes\]'"):
        calibrated(loaded)
