"""Reports and plots beside an artifact."""

import json
import struct
from pathlib import Path

import pytest

from guards.calibration.drawing import require_matplotlib
from guards.calibration.finished import Calibration
from guards.calibration.report import report_folder, report_of, write_report
from guards.calibration.shown import ShownTable
from guards.errors import ArtifactError
from guards.methods.cube.calibrate import calibrate as calibrate_cubes
from guards.methods.cube.options import CubeOptions
from guards.methods.neuron_adjust.calibrate import calibrate as calibrate_neuron_adjust
from guards.methods.neuron_adjust.options import NeuronAdjustOptions
from guards.methods.registry import CUBE, NEURON_ADJUST, SELECTIVE_PRUNING, SPANS
from guards.methods.selective_pruning.calibrate import calibrate as calibrate_pruning
from guards.methods.selective_pruning.options import PruningOptions
from guards.methods.spans.calibrate import calibrate as calibrate_spans
from guards.methods.spans.options import SpanOptions
from tests.guards.tiny import sources, tiny_loaded
from tests.models import LAYERS


def _size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return int(width), int(height)


def check_table(table: ShownTable, *, rows: int) -> None:
    """Every row has a cell under every heading; the last of an intervention's is the sum of the others."""
    assert len(table.rows) == rows
    assert all(len(row) == len(table.headings) for row in table.rows)
    *layers, last = table.rows
    if last[0] == "all":
        assert [sum(map(int, column)) for column in zip(*layers, strict=True)][1:] == list(map(int, last[1:]))


def test_a_report_goes_beside_the_folder_that_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guard" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "guard" / "deep")
    beside = {str(given): report_folder(given).resolve() for given in map(Path, (".", "..", "own", "../own/"))}
    assert beside == {
        ".": tmp_path / "guard" / "deep-report",
        "..": tmp_path / "guard-report",
        "own": tmp_path / "guard" / "deep" / "own-report",
        "../own": tmp_path / "guard" / "own-report",
    }


def test_plots_of_a_detector_and_its_report(tmp_path: Path) -> None:
    frames = ("chat", "Costs $5: {text}\nA:")
    loaded, (forget, retain) = tiny_loaded(), sources(80)
    result = calibrate_cubes(loaded, forget, retain, CubeOptions(frames=frames, max_false_abstention=0.05))
    check_table(CUBE.table(result), rows=len(frames))
    plots = CUBE.plots(result, "sums", loaded, forget, retain)
    assert sorted(plots) == ["layers.png", "roc.png", "scores.png"]
    assert all(width >= 800 and height >= 400 for width, height in map(_size, plots.values()))
    report = report_of(result, "sums", "0" * 64, CUBE.report(result))
    folder = report_folder(tmp_path / "guard")
    for _ in range(2):
        write_report(folder, report, plots)
    assert sorted(path.name for path in folder.iterdir()) == sorted(["report.json", *plots])
    assert [path.name for path in tmp_path.iterdir()] == ["guard-report"]
    read = json.loads((folder / "report.json").read_text())
    assert [frame["frame"] for frame in read["frames"]] == list(frames)
    assert [layer["layer"] for layer in read["frames"][0]["layers"]] == [0, 1, 2]
    assert read["frames"][0]["false_abstention_by_source"]["words"]["total"] == 40
    assert set(read["seconds"]) == {"encode", "fit", "score", "canaries"}
    assert "seconds" not in json.dumps(read["calibration"]), "no timing belongs in the artifact"


def test_plots_of_a_detector_over_spans_and_its_report() -> None:
    frames = ("chat", "Costs $5: {text}\nA:")
    options = SpanOptions(frames=frames, max_false_abstention=0.1, material="none", answers=4, longest=200)
    loaded, (forget, retain) = tiny_loaded(), sources(80)
    result = calibrate_spans(loaded, forget, retain, options)
    check_table(SPANS.table(result), rows=len(result.rows))
    assert SPANS.table(result).rows[0][0] == repr("chat"), "frames come first"
    plots = SPANS.plots(result, "sums", loaded, forget, retain)
    assert sorted(plots) == ["margins.png", "rows.png"]
    assert all(width >= 800 and height >= 400 for width, height in map(_size, plots.values()))
    base: Calibration = result
    report = json.loads(json.dumps(report_of(base, "sums", "0" * 64, SPANS.report(base)), allow_nan=False))
    assert report["layers"] == list(result.chosen.layers)
    assert report["taus"] == {each.label: each.tau for each in result.judgements}
    assert [row["name"] for row in report["rows"]][:2] == list(frames)
    assert len(report["candidates"]) == len(result.candidates)
    assert set(report["seconds"]) == {"encode", "answer", "fit", "read", "choose", "canaries"}
    assert "seconds" not in json.dumps(report["calibration"]), "no timing belongs in the artifact"


def test_plots_of_an_intervention() -> None:
    loaded = tiny_loaded()
    forget, retain = sources(40)
    result = calibrate_neuron_adjust(loaded, forget, retain, NeuronAdjustOptions(fraction=0.2))
    check_table(NEURON_ADJUST.table(result), rows=LAYERS + 1)
    plots = NEURON_ADJUST.plots(result, "sums", loaded, forget, retain)
    assert sorted(plots) == ["distributions.png", "neurons.png"]
    assert all(width >= 800 and height >= 400 for width, height in map(_size, plots.values()))
    base: Calibration = result
    report = json.loads(json.dumps(report_of(base, "sums", "0" * 64, NEURON_ADJUST.report(base))))
    assert report["neurons_by_layer"] == list(result.neurons_by_layer)
    assert report["tokens"] == result.tokens


def test_plots_of_a_pruning_show_attention_where_any_is_pruned() -> None:
    loaded, (forget, retain) = tiny_loaded(), sources(40)
    for share, names in ((0.0, ["neurons.png"]), (0.0625, ["attention.png", "neurons.png"])):
        options = PruningOptions(fraction=0.125, attention_fraction=share)
        result = calibrate_pruning(loaded, forget, retain, options)
        check_table(SELECTIVE_PRUNING.table(result), rows=LAYERS + 1)
        plots = SELECTIVE_PRUNING.plots(result, "sums", loaded, forget, retain)
        assert sorted(plots) == names
        assert all(width >= 800 and height >= 400 for width, height in map(_size, plots.values()))
        report = json.loads(json.dumps(report_of(result, "sums", "0" * 64, SELECTIVE_PRUNING.report(result))))
        assert report["feed_forward_by_layer"] == list(result.feed_forward_by_layer)
        assert report["attention_by_layer"] == list(result.attention_by_layer)


def test_a_folder_that_is_no_report_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "guard-report"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(ArtifactError, match=r"holds no report\.json"):
        write_report(folder, {}, {})
    assert (folder / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("name", ["mine.txt", "holiday.png", ".hidden", "figures/mine.txt", "roc.png/mine.txt"])
def test_a_report_with_somebody_elses_file_is_left_alone(tmp_path: Path, name: str) -> None:
    """`roc.png` as a folder: only its name is a report's."""
    folder = tmp_path / "guard-report"
    write_report(folder, {"skill": "sums"}, {"scores.png": b"plot"} | ({} if "/" in name else {"roc.png": b"plot"}))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("keep")
    with pytest.raises(ArtifactError, match=f"holds a report and also '{name.partition('/')[0]}', which replacing"):
        write_report(folder, {}, {})
    assert (folder / name).read_text() == "keep"
    assert json.loads((folder / "report.json").read_text())["skill"] == "sums"


@pytest.mark.parametrize("text", ["{", "[]", '{"plots": null}', '{"plots": [1]}', '"plots"', "{}"])
def test_a_report_of_some_other_program_owns_no_plots(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "guard-report"
    folder.mkdir()
    (folder / "report.json").write_text(text)
    (folder / "roc.png").write_text("keep")
    with pytest.raises(ArtifactError, match=r"also 'roc\.png'"):
        write_report(folder, {}, {})
    (folder / "roc.png").unlink()
    write_report(folder, {"skill": "sums"}, {})
    assert json.loads((folder / "report.json").read_text()) == {"skill": "sums", "plots": []}


def test_plots_of_an_older_report_do_not_stay(tmp_path: Path) -> None:
    folder = tmp_path / "guard-report"
    write_report(folder, {}, {"roc.png": b"older", "scores.png": b"older"})
    write_report(folder, {}, {"scores.png": b"newer"})
    assert {entry.name for entry in folder.iterdir()} == {"report.json", "scores.png"}
    assert (folder / "scores.png").read_bytes() == b"newer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["guard-report"]


def test_matplotlib_is_there_for_these_tests() -> None:
    require_matplotlib()
