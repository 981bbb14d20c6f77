"""`skillguard evaluate` on the demo model: in this process, and against servers."""

import json
from pathlib import Path

import pytest

from benchmarks.serving import ROOT, running_server
from server.cli.main import main
from server.engines.options import EmbeddedOptions
from server.evaluation.arms import engine_arms
from tests.asking import MATHEMATICS

pytestmark = pytest.mark.real

DEMO = ROOT / "artifacts" / "demo"
LIMIT = 3


def suites(*skills: str) -> list[str]:
    return [part for skill in skills for part in ("--suite", f"prompts={DEMO / 'data' / f'{skill}.test.jsonl'}")]


def test_in_this_process(tmp_path: Path) -> None:
    """Each guard alone: its skill is gone, the others are kept, and the figures are drawn."""
    artifacts = [str(DEMO / "guards" / name) for name in ("ksd-mathematics", "ksd-es")]
    arguments = [
        "--artifacts",
        *artifacts,
        *suites("mathematics", "code", "es", "zh"),
        "--limit",
        str(LIMIT),
        "--plots",
    ]
    assert main(["evaluate", "--output", str(tmp_path / "run"), *arguments]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [guard["guard"] for guard in results["guards"]] == ["ksd-mathematics", "ksd-es"]
    for guard, own in zip(results["guards"], ("mathematics", "es"), strict=True):
        assert guard["own"] == [own]
        assert (guard["recall"]["hits"], guard["false_abstention"]["hits"]) == (LIMIT, 0)
        assert guard["auroc"] == 1
        assert guard["s_unlearning"]["s"] == 1
        for label, suite in guard["suites"].items():
            assert suite["relative"]["value"] == (0 if label == own else 1)
    assert (tmp_path / "run" / "relative.png").is_file()
    assert (tmp_path / "run" / "languages.png").is_file()


def test_together_is_one_row() -> None:
    artifacts = tuple(DEMO / "guards" / name for name in ("ksd-mathematics", "ksd-es"))
    options = EmbeddedOptions(model=str(DEMO / "model"), artifacts=artifacts)
    assert [arm.name for arm in engine_arms(options, together=True)] == ["none", "ksd-mathematics+ksd-es"]
    assert [arm.name for arm in engine_arms(options, together=False)] == ["none", "ksd-mathematics", "ksd-es"]


def test_against_servers(tmp_path: Path) -> None:
    """The same figures over HTTP, all guards of a server together; and toxicity, to a list on which 73 is toxic."""
    rows = [{"prompt": {"text": text, "toxicity": 0.9}} for text in MATHEMATICS]
    (tmp_path / "rtp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.txt").write_text("73\n")
    toxicity = ["--suite", f"toxicity:sums={tmp_path / 'rtp.jsonl'}", "--toxicity-words", str(tmp_path / "words.txt")]
    with running_server("--unguarded") as baseline, running_server("--anonymous-role", "operator") as guarded:
        servers = ["--url", guarded, "--baseline-url", f"{baseline}/v1"]
        arguments = [*servers, *suites("mathematics", "facts"), "--limit", str(LIMIT)]
        scored = [*arguments, *toxicity, "--own", "ksd-mathematics=mathematics,sums"]
        assert main(["evaluate", "--output", str(tmp_path / "run"), *scored]) == 0
        wrong = [*arguments[:1], baseline, *arguments[2:]]
        assert main(["evaluate", "--output", str(tmp_path / "other"), *wrong]) == 1
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (guard,) = results["guards"]
    assert (guard["guard"], guard["recall"]["hits"]) == ("ksd-mathematics", LIMIT + len(rows))
    assert guard["false_abstention"]["hits"] == 0
    assert guard["auroc"] == 1
    without, with_guard = results["suites"][-1]["toxicity"], guard["suites"]["sums"]["toxicity"]
    assert (without["mean"]["value"], without["withheld"]) == (0.5, 0), "one of the two answers adds 8 to 73"
    assert (with_guard["mean"]["value"], with_guard["withheld"]) == (0, 2)
    assert (guard["without"]["s_unlearning"]["ubar"], guard["s_unlearning"]["ubar"]) == (0.25, 1)
