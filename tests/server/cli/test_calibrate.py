"""`skillguard calibrate` end to end on a tiny model folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from guards.artifact.store import read_artifact
from guards.calibration.entry import Entry
from guards.calibration.finished import held_output
from guards.errors import ArtifactError
from guards.methods.cube.guard import Regime
from guards.methods.cube.options import CubeOptions
from guards.methods.neuron_adjust.guard import Draw
from guards.methods.neuron_adjust.options import NeuronAdjustOptions
from guards.methods.registry import names
from guards.methods.selective_pruning.guard import Importance
from guards.methods.selective_pruning.options import PruningOptions
from guards.methods.spans.options import QUESTION_FRAME, SpanOptions
from server.cli.main import build_parser, main
from tests.guards.tiny import save_tiny, sums, words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and two sources."""
    folder = tmp_path_factory.mktemp("calibrate")
    save_tiny(folder / "model")
    rows = [json.dumps({"id": index, "sum": text}) for index, text in enumerate(sums(200))]
    (folder / "sums.jsonl").write_text("\n".join(rows))
    (folder / "words.txt").write_text("\n".join(words(240)))
    return folder


def _arguments(folder: Path, method: str, output: Path, *more: str) -> list[str]:
    return [
        *("calibrate", method, "--model", str(folder / "model"), "--skill", "sums", "--device", "cpu"),
        *("--forget", f"{folder}/sums.jsonl?id=..179#sum", "--retain", f"{folder}/words.txt"),
        *("--output", str(output), *more),
    ]


@pytest.mark.parametrize(
    ("method", "more", "plots"),
    [
        (
            "ksd",
            ("--frame", "chat", "--frame", "{text}\\nA:", "--max-false-abstention", ".05", "--material", "none"),
            2,
        ),
        ("neuron-adjust", ("--fraction", ".25"), 2),
        (
            "selective-pruning",
            ("--fraction", ".125", "--attention-fraction", ".0625", "--steps", "2", "--importance", "rms"),
            2,
        ),
    ],
)
def test_writes_an_artifact_and_a_report_and_says_what_next(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, more: tuple[str, ...], plots: int
) -> None:
    output = tmp_path / "guard"
    assert main(_arguments(folder, method, output, "--plots", *more)) == 0
    printed = capsys.readouterr().out
    assert f"skillguard serve --model {folder / 'model'} --artifacts {output}" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guard", "guard-report"]
    assert sorted(path.name for path in output.iterdir()) == ["manifest.json", "tensors.safetensors"]
    assert len(list((tmp_path / "guard-report").glob("*.png"))) == plots
    manifest = read_artifact(output).manifest
    assert (manifest.method, manifest.skill) == (method, "sums")
    assert manifest.model.weights_sha256 is not None
    assert json.loads((tmp_path / "guard-report" / "report.json").read_text())["digest"] == read_artifact(output).digest
    forget = next(source for source in manifest.calibration.sources if source.role == "forget")
    assert (forget.name, forget.examples) == (f"{folder.name}/sums.jsonl?id=..179#sum", 180)
    assert str(folder.parent) not in (output / "manifest.json").read_text(), "no path of this machine"
    if method == "ksd":
        assert manifest.calibration.frames == ("chat", "{text}\nA:")
        assert "recall" in printed
    if method == "selective-pruning":
        assert manifest.parameters["importance"] == "rms"
        assert ["all", "18", "6"] in [line.split() for line in printed.splitlines()]
        report = json.loads((tmp_path / "guard-report" / "report.json").read_text())
        assert (sum(report["feed_forward_by_layer"]), sum(report["attention_by_layer"])) == (18, 6)
        assert main(["inspect", str(output)]) == 0
        shown = capsys.readouterr().out
        assert "attention_fraction" in shown
        assert "feed_forward" in shown


@pytest.mark.parametrize(
    ("more", "variant", "frames"),
    [
        (("--material", "none", "--max-false-abstention", ".4"), "spans", ("chat", "bare", QUESTION_FRAME)),
        (("--variant", "paper", "--regime", "last-token"), "paper", ("chat",)),
    ],
    ids=["by default", "paper"],
)
def test_the_variant_is_that_of_the_artifact(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    variant: str,
    frames: tuple[str, ...],
) -> None:
    output = tmp_path / "guard"
    assert main(_arguments(folder, "ksd", output, "--recall", ".9", "--max-false-abstention", ".05", *more)) == 0
    printed = capsys.readouterr().out
    assert "false abstention" in printed
    rows = [line.split() for line in printed.splitlines() if line.strip().startswith("'")]
    assert len(rows) == len(frames)
    manifest = read_artifact(output).manifest
    assert manifest.parameters["variant"] == variant
    assert manifest.calibration.frames == frames, "the default that --help shows"
    assert main(["inspect", str(output)]) == 0
    shown = capsys.readouterr().out
    assert variant in shown
    assert f"{len(manifest.canaries)} carry messages or text" in " ".join(shown.split())


def test_each_variant_has_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args(["calibrate", "ksd", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    spans, paper = SpanOptions(), CubeOptions()
    for field in ("recall", "max_false_abstention", "placement"):
        values = [getattr(each, field) for each in (spans, paper)]
        assert "(default: spans: {}; paper: {})".format(*values) in shown
        assert values[0] != values[1], "positive control: they differ"
    assert "one layer for each frame (default spans)" in shown
    frames = {name: " ".join(of.usual_frames.split()) for name, of in (("spans", spans), ("paper", paper))}
    assert f"(default: {'; '.join(f'{name}: {usual}' for name, usual in frames.items())})" in shown
    assert "(default: last-token)" in shown.partition("with --variant paper")[2], "an option of one variant"


def test_a_regime_needs_cubes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_arguments(folder, "ksd", tmp_path / "guard", "--regime", "all-tokens")) != 0
    assert "--regime: variant spans has no such option; it needs --variant paper" in capsys.readouterr().err
    for unknown in ("spheres", "pooled"):
        with pytest.raises(SystemExit, match="2"):
            main(_arguments(folder, "ksd", tmp_path / "guard", "--variant", unknown))
        assert f"invalid choice: '{unknown}'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--recall", "1.5"), "got --recall 1.5"),
        (("--skill", "two words"), "got skill name"),
        (("--layer", "7"), "got --layer 7, wanted 0 to 2"),
        (("--frame", "no place"), "wanted 'chat', 'bare' or a template"),
        (("--retain", "nowhere.jsonl"), "no such file"),
        (("--model", "./nowhere"), "no such folder"),
        (("--retain", "hf:a/b"), "wanted hf:NAME"),
        (("--limit", "0"), "got limit 0"),
    ],
)
def test_an_error_is_one_line_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert main(_arguments(folder, "ksd", tmp_path / "guard", *more)) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "given", "less"),
    [
        ("ksd", (), "name one --layer, take --site residual, which is narrower, lower --batch-tokens, or give"),
        ("ksd", ("--layer", "1", "--site", "residual"), "lower --batch-tokens, or give"),
        ("neuron-adjust", (), "lower --batch-tokens, or give"),
    ],
)
def test_too_little_memory_is_one_line_that_says_what_needs_less(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    given: tuple[str, ...],
    less: str,
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")

    monkeypatch.setattr(Entry, "calibrate", fail)
    assert main(_arguments(folder, method, tmp_path / "guard", *given)) != 0
    said = capsys.readouterr().err
    assert f"out of memory (CUDA out of memory): {less}" in said
    assert not list(tmp_path.iterdir())


def test_plots_that_fail_cost_nothing_but_plots(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was calibrated is on disk before the first is drawn."""
    found: list[bool] = []

    def broken(*_: object) -> dict[str, bytes]:
        found.extend((tmp_path / name).is_file() for name in ("guard/manifest.json", "guard-report/report.json"))
        raise RuntimeError("no font")

    monkeypatch.setattr(Entry, "plots", broken)
    assert main(_arguments(folder, "neuron-adjust", tmp_path / "guard", "--plots", "--fraction", ".25")) == 0
    assert found == [True, True]
    printed = capsys.readouterr()
    assert "warning: no plots (RuntimeError: no font); artifact and report are written" in printed.err
    assert "skillguard serve" in printed.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guard", "guard-report"]


def test_one_output_is_one_calibrations_at_a_time(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held_output(tmp_path / "guard"):
        assert main(_arguments(folder, "neuron-adjust", tmp_path / "." / "guard")) == 1
        assert "another calibration is writing there" in capsys.readouterr().err
        with held_output(tmp_path / "other"):
            pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".guard-lock").touch()  # of one that was killed
    with held_output(tmp_path / "guard"), pytest.raises(ArtifactError), held_output(tmp_path / "guard"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_something_else_is_refused_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("keep")
    assert main(_arguments(folder, "ksd", tmp_path)) != 0
    assert "is no artifact" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "keep"


def test_the_field_rows_and_repeats_are_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five headers in `instruction`, the sums in `input`: each row is both, and what was read is said."""
    rows = [{"instruction": f"do {index % 5}", "input": text} for index, text in enumerate(sums(180))]
    (tmp_path / "alpaca.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for suffix, said, warns in (
        ("", "180 examples of 180 rows, 0 of them repeats, in field instruction and input", False),
        ("#instruction", "5 examples of 180 rows, 175 of them repeats, in field instruction", True),
    ):
        output = tmp_path / f"guard{len(suffix)}"
        arguments = _arguments(folder, "selective-pruning", output, "--fraction", ".125", "--frame", "bare")
        arguments[arguments.index("--forget") + 1] = f"{tmp_path}/alpaca.jsonl{suffix}"
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert f"forget {tmp_path.name}/alpaca.jsonl{suffix}: {said}" in printed
        assert ("175 of 180 rows repeat others in field instruction" in printed) is warns
        record = read_artifact(output).manifest.calibration
        assert (record.sources[0].rows, record.sources[0].examples) == (180, 5 if warns else 180)
        assert main(["inspect", str(output)]) == 0
        assert "of 180 rows" in " ".join(capsys.readouterr().out.split())


def test_long_documents_are_cut_where_that_was_asked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.txt").write_text("\n".join(f"{text} " + "word " * 100 for text in words(12, seed=4)))
    for more, examples in (((), 0), (("--cut",), 12)):
        output = tmp_path / f"guard{examples}"
        arguments = _arguments(folder, "selective-pruning", output, "--fraction", ".125", *more)
        assert main([*arguments, "--retain", f"{tmp_path}/long.txt"]) == 0
        printed = capsys.readouterr().out
        assert ("12 retain example(s) were left out" in printed) is not bool(examples)
        assert ("12 cut to what fits" in printed) is bool(examples)
        assert read_artifact(output).manifest.calibration.sources[-1].examples == examples


@pytest.mark.parametrize("method", names())
def test_help_is_instant(method: str) -> None:
    """It shows every default without what a calibration imports."""
    heavy = ("torch", "transformers", "numpy", "scipy", "safetensors", "tqdm", "rich", "matplotlib", "fastapi", "vllm")
    code = f"""
import sys
from server.cli.main import main
try:
    main(["calibrate", {method!r}, "--help"])
except SystemExit:
    print("heavy:", [name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert f"usage: skillguard calibrate {method}" in " ".join(done.stdout.split())
    assert done.stderr == "heavy: []\n"


def test_choices_are_the_methods_own() -> None:
    arguments = ["--model", "m", "--skill", "s", "--forget", "f", "--retain", "r", "--output", "o"]
    for regime in Regime:
        build_parser().parse_args(["calibrate", "ksd", *arguments, "--regime", regime.value])
    for draw in Draw:
        build_parser().parse_args(["calibrate", "neuron-adjust", *arguments, "--draw", draw.value])
    assert Regime(CubeOptions().regime) is Regime.LAST_TOKEN
    assert Draw(NeuronAdjustOptions().draw) is Draw.RANDOM
    for importance in Importance:
        build_parser().parse_args(["calibrate", "selective-pruning", *arguments, "--importance", importance.value])
    assert Importance(PruningOptions().importance) is Importance.ABS


def test_variables_of_the_template_go_on_to_the_server(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--fraction", ".125", "--chat-template-kwargs", '{"enable_thinking": false}')
    assert main(_arguments(folder, "selective-pruning", tmp_path / "guard", *more)) == 0
    assert """ --chat-template-kwargs '{"enable_thinking": false}'""" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_variables_that_are_no_object(capsys: pytest.CaptureFixture[str], text: str) -> None:
    arguments = ("--model", "m", "--skill", "s", "--forget", "f", "--retain", "r", "--output", "o")
    with pytest.raises(SystemExit):
        build_parser().parse_args(["calibrate", "ksd", *arguments, "--chat-template-kwargs", text])
    assert "wanted a JSON object" in capsys.readouterr().err
