"""One client against a server: its steps, as rows."""

import json
import os
import subprocess
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.clients.drivers.steps import LONGEST, Served
from benchmarks.clients.environments import NoEnvironmentError, python_for
from benchmarks.clients.registry import Client
from benchmarks.report import environment

ROOT = Path(__file__).resolve().parents[2]
START = "start"
"""The step that fails where a client could not be installed, started or ended."""
_TIMEOUT_SECONDS = 900
_ENVIRONMENT = {
    "OPENAI_API_KEY": "unused",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(ROOT),
}
Row = dict[str, Any]


def drive(client: Client, served: Served, work: Path) -> list[Row]:
    """A row for each step, with the client's version."""
    try:
        python = python_for(client, work)
    except NoEnvironmentError as error:
        return [_row(client, served, None, START, "failed", str(error))]
    version = _version(python, client.package)
    results = work / f"{client.name}.{served.style}.jsonl"
    results.unlink(missing_ok=True)
    command = [str(python), "-m", "benchmarks.clients.drivers", client.driver, client.name, str(results)]
    said = _ended(command, json.dumps(asdict(served)))
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    rows = [_row(client, served, version, **json.loads(line)) for line in lines]
    if said is not None:
        rows.append(_row(client, served, version, START, "failed", said))
    return rows


def _ended(command: list[str], given: str) -> str | None:
    """Runs a driver; what went wrong with it as a whole, if anything did."""
    environment = {**os.environ, **_ENVIRONMENT}
    try:
        done = subprocess.run(
            command,
            input=given,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {_TIMEOUT_SECONDS} s"
    return None if done.returncode == 0 else " ".join(done.stderr.split())[-LONGEST:]


def _version(python: Path, package: str) -> str:
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


@cache
def _commit() -> str:
    return environment()["commit"]


def _row(client: Client, served: Served, version: str | None, step: str, outcome: str, said: str) -> Row:
    return {
        "client": client.name,
        "package": client.package,
        "version": version,
        "style": served.style,
        "step": step,
        "outcome": outcome,
        "said": said,
        "commit": _commit(),
    }
