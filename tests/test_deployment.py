"""The images' Dockerfiles, the compose file and the chart: linted, rendered by Helm's own code, and validated."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate as validator
import pytest
import yaml

from server.config import ServerConfig
from server.engines.scripted.engine import ScriptedEngine
from server.keyring import OPEN_PATHS
from tests.server.harness import serving

DOCKER = Path(__file__).resolve().parents[1] / "docker"
CHART = DOCKER / "helm" / "skillguard"
PROJECT = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())["project"]
KUBERNETES = "1.33"
OPERATORS = {"PodMonitor", "PrometheusRule"}
"""Kinds that Kubernetes itself does not know."""
KEYS = {"keys": {"existingSecret": "our-keys"}}
SMALL: dict[str, Any] = {"anonymous": True, "networkPolicy": {"enabled": False}}
SMALL["podDisruptionBudget"] = {"enabled": False}
VLLM: dict[str, Any] = yaml.safe_load((DOCKER / "helm" / "values-vllm.yaml").read_text())
FULL: dict[str, Any] = {
    **KEYS,
    "audit": {"existingClaim": "records"},
    "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
    "imagePullSecrets": [{"name": "registry"}],
    "runtimeClassName": "nvidia",
    "priorityClassName": "high",
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "a", "app.kubernetes.io/name": "other"},
    "service": {"type": "NodePort", "port": 8080, "annotations": {"a": "b"}},
    "networkPolicy": {"egress": [{"ports": [{"protocol": "UDP", "port": 53}]}]},
}
VALUES = {"keys": KEYS, "small": SMALL, "vllm": VLLM, "full": FULL}


def render(values: dict[str, Any], name: str = "guarded") -> dict[str, dict[str, Any]]:
    """By kind, what is installed; validated."""
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values, name=name, namespace="models")
    texts = [text for path, text in rendered.items() if not path.endswith("NOTES.txt")]
    objects = [found for text in texts for found in yaml.safe_load_all(text) if found]
    for each in objects:
        if each["kind"] not in OPERATORS:
            validator.validate(each, KUBERNETES, strict=True)
    found = {each["kind"]: each for each in objects}
    assert len(found) == len(objects)
    return found


def container(values: dict[str, Any]) -> Any:
    (found,) = render(values)["Deployment"]["spec"]["template"]["spec"]["containers"]
    return found


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_chart_is_good(values: dict[str, Any]) -> None:
    report = helm.lint(CHART, values, strict=True)
    assert (report["errors"], [each for each in report["messages"] if each["severity"] > 1]) == ([], [])
    found = render(values)
    selector = found["Deployment"]["spec"]["selector"]["matchLabels"]
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items(), "no label of a user's replaces one that is selected by"
    assert found["Service"]["spec"]["selector"] == selector
    ports = {each["name"] for each in container(values)["ports"]}
    assert {each["targetPort"] for each in found["Service"]["spec"]["ports"]} <= ports


def test_what_is_installed() -> None:
    assert set(render(SMALL)) == {"Deployment", "Service"}
    assert set(render(KEYS)) == {"Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"}
    assert set(render(VLLM)) == set(render(KEYS)) | {"HorizontalPodAutoscaler"} | OPERATORS


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_pods_have_no_rights_and_write_only_where_they_must(values: dict[str, Any]) -> None:
    pod = render(values)["Deployment"]["spec"]["template"]["spec"]
    (found,) = pod["containers"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False)
    assert found["securityContext"]["readOnlyRootFilesystem"] is True
    assert found["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    writable = [each["mountPath"] for each in found["volumeMounts"] if not each.get("readOnly")]
    assert set(writable) <= {"/tmp", "/dev/shm", "/audit"}


def test_every_pod_has_an_audit_folder_of_its_own() -> None:
    found = container(FULL)
    assert "--audit-dir=/audit" in found["args"]
    assert [each["name"] for each in found["env"]] == ["POD_NAME", "HF_TOKEN"]
    (mount,) = (each for each in found["volumeMounts"] if each["name"] == "audit")
    assert (mount["mountPath"], mount["subPathExpr"]) == ("/audit", "$(POD_NAME)")
    assert found["env"][0]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert "audit" not in str(container(KEYS)), "positive control"


def test_no_server_without_keys_unless_that_is_said() -> None:
    with pytest.raises(helm.HelmRenderError, match="name a secret with a keys file"):
        render({})
    assert not [flag for flag in container(SMALL)["args"] if "keys" in flag]
    found = container(KEYS)
    assert "--api-keys-file=/etc/skillguard/keys/keys.json" in found["args"]
    monitored = {**KEYS, "podMonitor": {"enabled": True}}
    with pytest.raises(helm.HelmRenderError, match="a key of the role metrics"):
        render(monitored)


def test_secrets_are_named_and_not_held() -> None:
    assert "Secret" not in render(FULL)
    volumes = render(KEYS)["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert [each["secret"]["secretName"] for each in volumes if "secret" in each] == ["our-keys"]
    (endpoint,) = render(VLLM)["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "skillguard-metrics-key", "key": "key"}


def test_replicas_belong_to_the_autoscaler() -> None:
    assert render(KEYS)["Deployment"]["spec"]["replicas"] == 1
    assert "replicas" not in render(VLLM)["Deployment"]["spec"]


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 2},
        {"replicas": "2"},
        {"args": ["--api-keys-file=/tmp/keys"]},
        {"args": ["--host", "::"]},
        {"keys": {"existingSecret": "Not A Name"}},
        {"keys": {"value": "sk-skillguard-x"}},
        {"service": {"port": 0}},
        {"startupProbe": {"failureThreshold": 0}},
        {"tmp": {"sizeLimit": "much"}},
        {"audit": {"existingClaim": "Not A Name"}},
        {"prometheusRule": {"thresholds": {"drifts": 0.2}}},
        {"prometheusRule": {"thresholds": {"drift": "0.2"}}},
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmValuesError):
        render({**KEYS, **values})


@pytest.mark.anyio
async def test_probes_ask_routes_that_need_no_key() -> None:
    found = container(KEYS)
    paths = {found[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths <= OPEN_PATHS
    async with serving() as served:
        assert {(await served.client.get(path)).status_code for path in paths} == {200}


def rules(*names: str) -> list[dict[str, Any]]:
    files = [yaml.safe_load((CHART / "files" / f"{name}.yaml").read_text()) for name in names]
    return [group for each in files for group in each["groups"]]


def test_the_rules_are_those_of_the_compose_file_and_thresholds_may_be_others() -> None:
    assert render(VLLM)["PrometheusRule"]["spec"] == {"groups": rules("recording", "alerts")}
    changed = {**KEYS, "prometheusRule": {"enabled": True, "thresholds": {"drift": 0.2}}}
    thresholds, *rest = render(changed)["PrometheusRule"]["spec"]["groups"]
    got = {rule["labels"]["name"]: rule["expr"] for rule in thresholds["rules"]}
    (wanted,) = (group for group in rules("recording") if group["name"] == "skillguard-thresholds")
    assert got == {rule["labels"]["name"]: rule["expr"] for rule in wanted["rules"]} | {"drift": "vector(0.2)"}
    assert rest == rules("recording", "alerts")[1:]
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["prometheusRule"]["properties"]
    assert schema["thresholds"]["properties"].keys() == got.keys()


@pytest.mark.anyio
async def test_the_autoscaler_asks_for_a_metric_that_there_is() -> None:
    (metric,) = render(VLLM)["HorizontalPodAutoscaler"]["spec"]["metrics"]
    async with serving(ScriptedEngine()) as served:
        shown = (await served.client.get("/metrics")).text
    assert f"\n{metric['pods']['metric']['name']} " in shown


def test_every_value_has_its_default_and_its_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert values.keys() == schema["properties"].keys() - {"global"}


def test_dockerfiles_are_linted() -> None:
    files = sorted(map(str, DOCKER.glob("*.Dockerfile")))
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, *files], capture_output=True, text=True, check=False)
    assert (len(files), done.returncode, done.stdout) == (3, 0, "")


@pytest.mark.parametrize("name", ["cpu", "vllm"])
def test_images_run_as_nobody_in_particular(name: str) -> None:
    lines = (DOCKER / f"{name}.Dockerfile").read_text().splitlines()
    last = lines[max(index for index, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert [line for line in last if line.startswith("USER ")][-1] == "USER 10001:10001"
    assert any("http://127.0.0.1:8000/ready" in line for line in last)
    assert f"EXPOSE {ServerConfig().port}" in last
    assert f"ARG VERSION={PROJECT['version']}" in last


def test_the_chart_serves_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (PROJECT["version"],) * 2


def test_compose() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "there are no keys"
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (DOCKER / source).is_dir(), volume
    scraped = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    assert scraped["rule_files"] == ["/rules/*.yaml"]
    assert "./helm/skillguard/files:/rules:ro" in compose["services"]["prometheus"]["volumes"]
    targets = [each["static_configs"][0]["targets"][0] for each in scraped["scrape_configs"]]
    assert f"skillguard:{ServerConfig().port}" in targets
