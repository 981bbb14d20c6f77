"""Alerts and dashboards: valid, tested by promtool, of metrics that there are, and each with its runbook."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.dashboards.__main__ import FOLDER, written
from guards.artifact.manifest import ScoreQuantiles
from guards.core.quantiles import LEVELS
from guards.core.verdict import GuardKind
from server.auth import Role, new_key
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard
from tests.programs import needed
from tests.server.harness import keys_file, serving

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "docker" / "helm" / "skillguard" / "files"
TESTS = ROOT / "tests" / "prometheus"
METRIC = re.compile(r"\b(?:job\w*:)?skillguard[_:][\w:]+")
OF_ENGINES = {"skillguard_canary_margin_ratio"}
"""Metrics that the scripted engine has not."""


def loaded(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / f"{name}.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboards() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every panel, with its dashboard's name."""
    for path in FOLDER.glob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        yield from ((found["uid"], panel) for panel in found["panels"])


def promtool() -> str:
    return needed("promtool", "prometheus")


def run(*command: str | Path) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_rules_and_configuration_are_valid(tmp_path: Path) -> None:
    status, said = run(promtool(), "check", "rules", *RULES.glob("*.yaml"))
    assert status == 0, said
    config = ROOT / "docker" / "prometheus" / "prometheus.yml"
    text = config.read_text(encoding="utf-8").replace("/rules/", f"{RULES}/")
    (there := tmp_path / config.name).write_text(text, encoding="utf-8")
    status, said = run(promtool(), "check", "config", there)
    assert status == 0, said
    assert f"{len(loaded('alerts'))} rules found" in said


@pytest.mark.parametrize("path", sorted(TESTS.glob("*.yml")), ids=lambda path: path.stem)
def test_alerts_fire_where_they_should_and_nowhere_else(path: Path) -> None:
    status, said = run(promtool(), "test", "rules", path)
    assert status == 0, said


def test_every_alert_is_among_those_tests_and_promtool_finds_a_wrong_one(tmp_path: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in TESTS.glob("*.yml")]
    fired = {name for text in texts for name in re.findall(r'labels: ALERTS{alertname="(\w+)"', text)}
    assert fired == {rule["alert"] for rule in loaded("alerts")}
    text = (TESTS / "alerts.yml").read_text(encoding="utf-8").replace("../../docker/helm/skillguard/files", str(RULES))
    assert "value: 0.375" in text
    (wrong := tmp_path / "wrong.yml").write_text(text.replace("value: 0.375", "value: 0.374"), encoding="utf-8")
    status, said = run(promtool(), "test", "rules", wrong)
    assert status != 0
    assert "drift6h" in said


def test_every_alert_has_a_runbook_entry_and_a_panel() -> None:
    operating = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    panels = {f"{uid}/{panel['title']}" for uid, panel in dashboards()}
    for rule in loaded("alerts"):
        name, said = rule["alert"], rule["annotations"]
        assert said.keys() == {"summary", "description", "runbook", "dashboard_panel"}, name
        assert said["runbook"] == f"docs/operating.md#{name.lower()}"
        assert f"\n#### {name}\n" in operating
        assert said["dashboard_panel"] in panels, name
        assert rule["labels"]["severity"] in {"warning", "critical"}
    assert len(re.findall(r"^#### Skillguard", operating, re.MULTILINE)) == len(loaded("alerts"))


def test_dashboards_are_what_the_module_makes() -> None:
    assert {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")} == written()


def test_dashboards_have_no_id_twice_and_describe_every_panel() -> None:
    for path in FOLDER.glob("*.json"):
        panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
        assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
        assert all(panel["description"] for panel in panels if panel["type"] != "row")


def test_a_state_is_that_of_now() -> None:
    """Else a server that is gone would look ready as long as its last scrape is in the picture."""
    found = [target for _, panel in dashboards() if panel["type"] == "stat" for target in panel["targets"]]
    assert {(each["instant"], each["range"]) for each in found} == {(True, False)}


@pytest.mark.anyio
async def test_rules_dashboards_and_pages_ask_for_metrics_that_there_are(tmp_path: Path) -> None:
    (folder := tmp_path / "log").mkdir()
    key, entry = new_key("prometheus", Role.METRICS)
    calibrated = replace(guard("b"), quantiles=ScoreQuantiles(examples=99, over_tau=tuple(1 + each for each in LEVELS)))
    moved = replace(guard("na", kind=GuardKind.INTERVENTION), unit="neurons")
    engine = ScriptedEngine(guards=(guard("a"), calibrated, moved))
    async with serving(engine, audit_dir=folder, api_keys_file=keys_file(tmp_path, entry)) as served:
        headers = {"authorization": f"Bearer {key}"}
        await served.client.get("/metrics", headers=headers)
        shown = (await served.client.get("/metrics", headers=headers)).text
    recorded = {rule["record"] for rule in loaded("recording")}
    queries = [rule["expr"] for rule in (*loaded("recording"), *loaded("alerts"))]
    queries += [target["expr"] for _, panel in dashboards() for target in panel.get("targets", ())]
    known = recorded | set(re.findall(r"^(skillguard_\w+)", shown, re.MULTILINE)) | OF_ENGINES
    asked = {name for text in queries for name in METRIC.findall(re.sub(r'"[^"]*"', '""', text))}
    assert asked - known == set()
    pages = "".join(each.read_text(encoding="utf-8") for each in (ROOT / "docs").glob("*.md"))
    known |= set(re.findall(r"^# TYPE (skillguard_\w+)", shown, re.MULTILINE))  # histograms have no series of that name
    known |= {each.stem for each in (ROOT / "benchmarks" / "lm_eval").glob("*.yaml")}  # tasks, which begin alike
    assert set(re.findall(r"`(skillguard_\w+)`", pages)) - known == set()
    assert recorded <= asked, "no rule is evaluated for nothing"
    thresholds = {name for text in queries for name in re.findall(r'skillguard:threshold{name="(\w+)"}', text)}
    named = [rule["labels"]["name"] for rule in loaded("recording") if rule["record"] == "skillguard:threshold"]
    assert thresholds == set(named)


def test_grafana_finds_the_dashboards_where_compose_mounts_them() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    provisioning = ROOT / "docker" / "grafana" / "provisioning" / "dashboards" / "skillguard.yaml"
    (provider,) = yaml.safe_load(provisioning.read_text(encoding="utf-8"))["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose["services"]["grafana"]["volumes"]
