"""Calibrating projections on a tiny model: the detector's probes, the beta that serves held-out prompts best."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from guards.artifact.store import read_artifact
from guards.calibration.corpus import Share
from guards.calibration.last_tokens import evenly, share_moved, usual_length
from guards.errors import CalibrationError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.probe.fit import Probe, RankedProbes
from guards.methods.probe.options import ProbeOptions
from guards.methods.probe_project.calibrate import BETAS, ProjectCalibration, boundary, share_beyond
from guards.methods.probe_project.guard import ProjectionGuard
from guards.methods.probe_project.options import ProjectOptions
from guards.methods.registry import PROBE, PROBE_PROJECT, load_guard, method_of
from guards.methods.spans.calibrate import SpanCalibration
from guards.methods.spans.guard import LayerWeights
from guards.methods.spans.passes import last_token
from guards.model.sites import Site
from tests.guards.methods.probe.test_fit import held
from tests.guards.methods.spans.test_calibrate_spans import TURNED
from tests.guards.tiny import sources, tiny_loaded
from tests.guards.verified import disagreements

QUICK: dict[str, Any] = {"material": "none", "longest": 32, "frames": ("chat",), "aggregation": "last"}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(chat_template=TURNED, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def made(loaded: LoadedModel) -> ProjectCalibration:
    found = PROBE_PROJECT.calibrate(loaded, *sources(120), ProjectOptions(**QUICK))
    assert isinstance(found, ProjectCalibration)
    return found


def test_a_boundary_is_where_the_logit_is_0_in_the_streams_own_unit() -> None:
    probe = Probe(LayerWeights(2, torch.tensor([3.0, -4.0]), 0.5), start=-1.5, gap=6.0, floored=0)
    of = boundary(probe, usual=7.0)
    torch.testing.assert_close(of.w_D, torch.tensor([-0.6, 0.8]))
    x_ND = torch.tensor([[0.3, 2.0], [-1.0, 0.2], [5.0, 1.0]])
    logit_N = probe.gap * (x_ND @ probe.term.weight_F - probe.term.offset) + probe.start  # of the other side
    torch.testing.assert_close(x_ND @ of.w_D + of.b, -logit_N / (5.0 * probe.gap))
    assert (of.layer, of.usual) == (2, 7.0)


def test_shares_beyond_are_of_held_out_windows() -> None:
    probes = [Probe(LayerWeights(layer, torch.ones(1), 0.0), -1.0, 2.0 + 2 * layer, 0) for layer in range(2)]
    texts = held(
        [("forget", torch.tensor([[0.4, 0.3]])), ("forget", torch.tensor([[0.6, 0.1]])), ("retain", torch.ones(1, 2))]
    )
    assert share_beyond(probes, texts, last_token) == {
        0: {"forget": 0.5, "retain": 0.0},
        1: {"forget": 0.5, "retain": 0.0},
    }


def test_how_far_states_moved() -> None:
    before = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    assert share_moved(before, before + torch.tensor([0.0, 0.5])) == pytest.approx(0.25)
    assert usual_length(2 * before) == pytest.approx(2)
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly(range(2), 3) == [0, 1]


def test_its_probes_and_layers_are_the_detectors(loaded: LoadedModel, made: ProjectCalibration) -> None:
    options = ProbeOptions(**QUICK, recall=0.9, max_false_abstention=0.2, answers=0)
    detector = PROBE.calibrate(loaded, *sources(120), options)
    assert isinstance(detector, SpanCalibration)
    assert isinstance(detector.directions, RankedProbes)
    assert isinstance(made.guard, ProjectionGuard)
    assert set(made.guard.layers) == detector.directions.best(1) == set(detector.chosen.layers)
    for of, term in zip(made.guard.boundaries, detector.chosen.terms, strict=True):
        assert float(torch.cosine_similarity(of.w_D, -term.weight_F, dim=0)) == pytest.approx(1, abs=1e-6)


def test_beta_is_what_serves_held_out_prompts_best(made: ProjectCalibration) -> None:
    assert [each.beta for each in made.candidates] == list(BETAS)
    assert made.chosen is min(made.candidates, key=lambda each: each.deviation)
    assert made.chosen.left < 1
    assert isinstance(made.guard, ProjectionGuard)
    assert made.guard.beta == made.chosen.beta == made.reported.beta
    assert made.reported != made.chosen, "of other prompts"
    assert made.reported.left < 1
    for of in made.beyond.values():
        assert of["forget"] > of["retain"]


def test_its_canaries_agree_and_tell_a_weaker_guard(
    loaded: LoadedModel, made: ProjectCalibration, tmp_path: Path
) -> None:
    digest = made.save(tmp_path / "project", "sums")
    artifact = read_artifact(tmp_path / "project")
    assert method_of(artifact) is PROBE_PROJECT
    guard, canaries = load_guard(artifact), artifact.manifest.canaries
    assert isinstance(guard, ProjectionGuard)
    assert any(canary.fires for canary in canaries)
    assert disagreements(loaded, PROBE_PROJECT, guard, canaries) == []
    for weaker in (
        replace(guard, beta=0.9 * guard.beta),
        replace(guard, boundaries=tuple(replace(each, b=each.b - 0.1 * each.usual) for each in guard.boundaries)),
    ):
        assert disagreements(loaded, PROBE_PROJECT, weaker, canaries)
    again = PROBE_PROJECT.calibrate(loaded, *sources(120), ProjectOptions(**QUICK))
    assert again.save(tmp_path / "again", "sums") == digest


def test_what_is_named_is_taken_and_all_is_shown(loaded: LoadedModel) -> None:
    options = ProjectOptions(**{**QUICK, "aggregation": "spans"}, layer=1, beta=0.5)
    found = PROBE_PROJECT.calibrate(loaded, *sources(60), options)
    assert isinstance(found, ProjectCalibration)
    assert isinstance(found.guard, ProjectionGuard)
    assert (found.guard.layers, found.guard.beta) == ((1,), 0.5)
    assert PROBE_PROJECT.sites(options) == (Site.RESIDUAL,)
    table, report = PROBE_PROJECT.table(found), PROBE_PROJECT.report(found)
    assert [row[:2] for row in table.rows] == [("1", "0.5")]
    assert table.rows[0][-1] == "chosen"
    assert (report["layers"], report["beta"]) == ([1], 0.5)
    assert [(each["layer"], each["chosen"]) for each in report["probes"]] == [(1, True)]
    assert any("layer 1, beta 0.5; " in note for note in found.record.notes)
    assert Share.REPORT.value in found.record.notes[0]
    drawn = PROBE_PROJECT.plots(found, "sums", loaded, *sources(60))
    assert set(drawn) == {"betas.png", "probes.png"}
    assert all(each.startswith(b"\x89PNG") for each in drawn.values())


OVERFLOWS = 1e39
"""A beta that no float32 holds."""


def test_a_beta_under_which_the_stream_overflows_is_left_out(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guards.methods.probe_project.calibrate.BETAS", (OVERFLOWS, 1.0))
    found = PROBE_PROJECT.calibrate(loaded, *sources(60), ProjectOptions(**QUICK, layer=1))
    assert isinstance(found, ProjectCalibration)
    assert [each.beta for each in found.candidates] == [found.chosen.beta] == [1.0]
    assert "beta 1e+39 left out: the residual stream is not finite under it" in found.record.notes


def test_where_no_beta_is_left_the_error_says_what_to_do(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guards.methods.probe_project.calibrate.BETAS", (OVERFLOWS, 2 * OVERFLOWS))
    with pytest.raises(CalibrationError, match=r"got `beta` 1e\+39, 2e\+39, wanted .* smaller `beta`"):
        PROBE_PROJECT.calibrate(loaded, *sources(60), ProjectOptions(**QUICK, layer=1))


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": 101.0}, {"of_each_third": 0}])
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(CalibrationError, match=next(iter(wrong))):
        ProjectOptions(**wrong)


def test_a_layer_that_is_named_is_the_only_one() -> None:
    with pytest.raises(CalibrationError, match="got `layer` 2 and `of_each_third` 3, wanted one of the two"):
        ProjectOptions(layer=2, of_each_third=3)
    assert ProjectOptions(layer=2).of_each_third == 1
    assert ProjectOptions(of_each_third=3).layer is None
