"""The real components: Prometheus and Alertmanager with our rules, each on a free port, and a receiver of alerts."""

import json
import queue
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.serving import ROOT, running

RULES = ROOT / "docker" / "helm" / "skillguard" / "files"
JOB = "skillguard"
INTERVAL_SECONDS = 1
"""Between scrapes, and between evaluations of rules; 15 in docker/prometheus/prometheus.yml."""
_LISTENING = re.compile(r'msg="Listening on" address=(\S+)')
_READY = "Server is ready to receive web requests"
_TIMEOUT_SECONDS = 120


class MissingProgramError(RuntimeError):
    """A component is not installed."""


class NotInTimeError(RuntimeError):
    """Something did not come."""


def program(*names: str) -> str:
    """Where one of these programs is.

    Raises MissingProgramError.
    """
    for name in names:
        if (found := shutil.which(name)) is not None:
            return found
    raise MissingProgramError(
        f"got no {' or '.join(names)}; install Debian's packages prometheus and prometheus-alertmanager"
    )


def hurried_rules(folder: Path) -> Path:
    """Our rules, as they are but for what a condition has to last before its alert fires: two evaluations.

    Windows and comparisons with last week stay.
    """
    folder.mkdir()
    for path in RULES.glob("*.yaml"):
        rules = yaml.safe_load(path.read_text(encoding="utf-8"))
        for rule in (rule for group in rules["groups"] for rule in group["rules"]):
            if "for" in rule:
                rule["for"] = f"{2 * INTERVAL_SECONDS}s"
        (folder / path.name).write_text(yaml.safe_dump(rules), encoding="utf-8")
    return folder


def prometheus_config(folder: Path, rules: Path, *, server: str, key: Path, alertmanager: str) -> Path:
    """Prometheus' configuration, of a server with keys."""
    config = {
        "global": {"scrape_interval": f"{INTERVAL_SECONDS}s", "evaluation_interval": f"{INTERVAL_SECONDS}s"},
        "rule_files": [f"{rules}/*.yaml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [
            {
                "job_name": JOB,
                "authorization": {"credentials_file": str(key)},
                "static_configs": [{"targets": [server]}],
            }
        ],
    }
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def instant(self, query: str) -> list[dict[str, Any]]:
        """The series of a query now."""
        return self._ask("/api/v1/query", {"query": query})

    def over(self, query: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """The series of a query over time."""
        return self._ask("/api/v1/query_range", {"query": query, "start": start, "end": end, "step": step})

    def _ask(self, path: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        response = httpx.get(f"{self.url}{path}", params=dict(parameters), timeout=60)
        body = response.json()
        if body["status"] != "success":
            raise RuntimeError(f"{parameters['query']}: {body.get('error')}")
        found: list[dict[str, Any]] = body["data"]["result"]
        return found

    def wait_for(self, query: str, least: float) -> None:
        """Returns once a query's one value is `least` or more.

        Raises NotInTimeError.
        """
        until, last = time.monotonic() + _TIMEOUT_SECONDS, float("nan")
        while time.monotonic() < until:
            if found := self.instant(query):
                last = float(found[0]["value"][1])
                if last >= least:
                    return
            time.sleep(INTERVAL_SECONDS / 2)
        raise NotInTimeError(f"{query}: got {last}, wanted {least} within {_TIMEOUT_SECONDS} s")


@contextmanager
def prometheus(config: Path, data: Path) -> Iterator[Prometheus]:
    """A running Prometheus."""
    said: list[str] = []

    def address_in(line: str) -> str | None:
        """Once it has told its address and that it is ready, which it does in either order."""
        said.append(line)
        text = "".join(said)
        found = _LISTENING.search(text)
        return f"http://{found[1]}" if found is not None and _READY in text else None

    command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={data}"]
    with running([*command, "--web.listen-address=127.0.0.1:0"], address_in) as url:
        yield Prometheus(url)


@contextmanager
def alertmanager(folder: Path, webhook: str) -> Iterator[str]:
    """A running Alertmanager that tells a webhook at once; its address without the scheme."""
    config = {
        "route": {"receiver": "webhook", "group_by": ["alertname"], "group_wait": "0s", "group_interval": "1s"},
        "receivers": [{"name": "webhook", "webhook_configs": [{"url": webhook}]}],
    }
    (path := folder / "alertmanager.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [program("prometheus-alertmanager", "alertmanager"), f"--config.file={path}"]
    command += [f"--storage.path={folder / 'alerts'}", "--web.listen-address=127.0.0.1:0", "--cluster.listen-address="]

    def address_in(line: str) -> str | None:
        found = _LISTENING.search(line)
        return None if found is None else found[1]

    with running(command, address_in) as address:
        yield address


class Receiver:
    """What Alertmanager told its webhook."""

    def __init__(self) -> None:
        self._told: queue.Queue[tuple[float, dict[str, Any]]] = queue.Queue()
        self.seen: list[dict[str, Any]] = []

    def tell(self, body: bytes) -> None:
        """Takes one notification in."""
        for alert in json.loads(body)["alerts"]:
            self._told.put((time.monotonic(), alert))

    def wait_for(self, name: str) -> tuple[float, dict[str, Any]]:
        """When an alert came that fires, by the monotonic clock, and the alert.

        Raises NotInTimeError.
        """
        try:
            while True:
                at, alert = self._told.get(timeout=_TIMEOUT_SECONDS)
                self.seen.append(alert)
                if (alert["labels"]["alertname"], alert["status"]) == (name, "firing"):
                    return at, alert
        except queue.Empty:
            raise NotInTimeError(f"got no {name} within {_TIMEOUT_SECONDS} s of the last notification") from None

    def names(self) -> set[str]:
        """Of all alerts that fired so far."""
        while not self._told.empty():
            self.seen.append(self._told.get()[1])
        return {alert["labels"]["alertname"] for alert in self.seen if alert["status"] == "firing"}


@contextmanager
def receiver() -> Iterator[tuple[str, Receiver]]:
    """A webhook's address, and what it is told."""
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.tell(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", told
    finally:
        server.shutdown()
        server.server_close()
