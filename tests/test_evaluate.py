"""`skillguard evaluate` on the demo model: in this process, and against servers."""

import json
from pathlib import Path

import pytest

from benchmarks.serving import ROOT, running_server
from server.cli.main import main
from server.engines.options import EmbeddedOptions
from server.evaluation.arms import engine_arms

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
    """The same figures over HTTP, all guards of a server together."""
    with running_server("--unguarded") as baseline, running_server("--anonymous-role", "operator") as guarded:
        servers = ["--url", guarded, "--baseline-url", f"{baseline}/v1"]
        arguments = [*servers, *suites("mathematics", "facts"), "--limit", str(LIMIT)]
        assert main(["evaluate", "--output", str(tmp_path / "run"), *arguments]) == 0
        wrong = [*arguments[:1], baseline, *arguments[2:]]
        assert main(["evaluate", "--output", str(tmp_path / "other"), *wrong]) == 1
    (guard,) = json.loads((tmp_path / "run" / "results.json").read_text())["guards"]
    assert (guard["guard"], guard["recall"]["hits"], guard["false_abstention"]["hits"]) == ("ksd-mathematics", LIMIT, 0)
    assert guard["auroc"] == 1
