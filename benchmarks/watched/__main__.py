"""Runs a server under the real Prometheus and Alertmanager, makes its abstentions spike, and asks what dashboards ask.

    python -m benchmarks.watched [--pictures FOLDER]

Needs Debian's packages `prometheus` and `prometheus-alertmanager`. The demo is served with a detector that is
calibrated here on traffic like the load's, another that only watches and knows no quantiles, as imported ones, and an
intervention; with keys of two tenants, and with an audit log. Prometheus reads the rules that the chart and the
compose file have, and scrapes and evaluates every second. Alerts wait for two seconds, whatever their `for` says. Last
week is made up: counters of a server of whose answers a tenth abstained, over which promtool evaluates our own
recording rules.

First comes a load that abstains as often as last week, under which nothing may fire. Then one that asks for the skill
only; then all queries; then the server stops. With `--pictures` the dashboards are drawn. The last line printed is one
JSON object, as in benchmarks/results/watched.json.
"""

import argparse
import math
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artifacts.demo.guards import DEMO, KSD_OPTIONS, sources
from benchmarks import report
from benchmarks.serving import running_server
from benchmarks.watched.components import program
from benchmarks.watched.load import TENANTS, ask, fail, mixed, prompts
from benchmarks.watched.plots import draw
from benchmarks.watched.queries import Asked, asked
from benchmarks.watched.run import GONE, Series, lint, usual_then_spike, watching
from guards.artifact.store import read_artifact, write_artifact
from guards.inside.transformers.loading import load_model
from guards.methods.spans.calibrate import calibrate
from server.auth import DEFAULT_TENANT, Role, new_key
from server.tenants import Tenant, Tenants

NAME = "watched"
SKILL = "code"
FORGET_LIMIT, RETAIN_LIMIT = 300, 60
"""Prompts of the skill, and of each other: fewer than the demo's own guards have, for a minute's calibration."""
WATCHING, INTERVENTION = "ksd-mathematics", "na-mathematics"
SHARE = 0.1
"""Of abstentions, last week and in the first load."""
USUAL, SPIKE = 400, 120
"""Requests of the two loads."""


def detector(folder: Path) -> Path:
    """The artifact of a detector of SKILL for the demo that knows its quantiles."""
    torch.set_num_threads(1)  # on so small a model more are slower
    loaded = load_model(DEMO / "model", "cpu", "float32")
    forget, kept = sources(FORGET_LIMIT), sources(RETAIN_LIMIT)
    retain = [source for other, source in kept.items() if other != SKILL]
    path = folder / f"ksd-{SKILL}"
    calibrate(loaded, [forget[SKILL]], retain, KSD_OPTIONS).save(path, SKILL)
    return path


def without_quantiles(folder: Path, name: str) -> Path:
    """The demo's guard as one that was imported: no calibration says how common its scores are."""
    artifact = read_artifact(DEMO / "guards" / name)
    record = artifact.manifest.calibration.model_copy(update={"quantiles": None})
    path = folder / name
    write_artifact(path, artifact.manifest.model_copy(update={"calibration": record}), artifact.tensors)
    return path


@dataclass(frozen=True)
class Keys:
    """A keys file, the key for /metrics and a file of it, and a key of each tenant."""

    file: Path
    metrics: str
    metrics_file: Path
    callers: list[str]


def new_keys(folder: Path) -> Keys:
    """Keys of TENANTS, and of Prometheus."""
    roles = {**dict.fromkeys(TENANTS, Role.USER), DEFAULT_TENANT: Role.METRICS}
    made = {name: new_key(name, role) for name, role in roles.items()}
    tenants = Tenants(tenants={name: Tenant(keys=(entry,)) for name, (_, entry) in made.items()})
    (file := folder / "keys.json").write_text(tenants.model_dump_json(), encoding="utf-8")
    metrics = made[DEFAULT_TENANT][0]
    (metrics_file := folder / "metrics.key").write_text(metrics, encoding="utf-8")
    return Keys(file, metrics, metrics_file, [made[name][0] for name in TENANTS])


def measure(folder: Path, pictures: Path | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each query, and what alerts did."""
    keys = new_keys(folder)
    guards = [detector(folder), without_quantiles(folder, WATCHING), DEMO / "guards" / INTERVENTION]
    (log := folder / "audit").mkdir()
    flags = ["--model", DEMO / "model", "--artifacts", *guards, "--shadow", WATCHING]
    flags += ["--audit-dir", log, "--api-keys-file", keys.file]
    with ExitStack() as server:
        url = server.enter_context(running_server(*map(str, flags)))
        with watching(folder, url.removeprefix("http://"), keys.metrics_file, SKILL, SHARE) as watched:
            began = time.time()

            def load(texts: Sequence[str]) -> int:
                fail(url, keys.callers[0])
                return ask(url, keys.callers, texts)

            alerts = usual_then_spike(watched, load, mixed(SKILL, USUAL, SHARE), prompts(SKILL)[:SPIKE])
            queries = list(asked())
            shown = [watched.shown(each, began) for each in queries]
            said = lint(url, keys.metrics)
            server.close()
            gone = watched.await_alert(GONE, time.monotonic())
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(each.dashboard for each in queries):
            of = [(each, found) for each, found in zip(queries, shown, strict=True) if each.dashboard == name]
            draw(name, of, pictures / f"{name}.png")
    more = {"last week": SHARE, **alerts, "stopped": gone, "lint": said, "versions": versions()}
    return [row(each, found) for each, found in zip(queries, shown, strict=True)], more


def row(each: Asked, found: Series) -> dict[str, Any]:
    """Of a query, how many series with a number in them it gave."""
    values = [[value for _, value in series.get("values", [series.get("value")])] for series in found]
    series = sum(any(math.isfinite(float(value)) for value in of) for of in values)
    return {"dashboard": each.dashboard, "panel": each.title, "query": each.expr, "series": series}


def versions() -> dict[str, str]:
    """Of the components."""
    found = {}
    for names in (("prometheus",), ("prometheus-alertmanager", "alertmanager")):
        done = subprocess.run([program(*names), "--version"], capture_output=True, text=True, check=True)
        said = re.search(r"version ([\d.]+)", done.stdout + done.stderr)
        found[names[-1]] = said[1] if said else "unknown"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw the dashboards there")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows, more = measure(Path(folder), args.pictures)
    report.publish(NAME, rows, **more)


if __name__ == "__main__":
    main()
