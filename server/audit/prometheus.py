"""A histogram of score quantiles as Prometheus has it: asked of its HTTP API, or in a server's own text."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import httpx
from prometheus_client.parser import text_string_to_metric_families

from server.errors import AuditFilesError

_BUCKETS = "skillguard_score_quantile_bucket"


def read_counts(source: str, guard: str, window: str) -> Mapping[float, float]:
    """How many prompts lie at or below each level. `source`: an address, or a file of what /metrics said.

    Raises AuditFilesError where it cannot be read, or has nothing of the guard.
    """
    by_address = source.startswith(("http://", "https://"))
    counts = _ask(source, guard, window) if by_address else _read(Path(source), guard)
    if not counts:
        raise AuditFilesError(
            f"{source}: no {_BUCKETS} of guard {guard!r}; its artifact holds no quantiles, or the name is another"
        )
    return counts


def _ask(address: str, guard: str, window: str) -> dict[float, float]:
    query = f'sum by (le) (increase({_BUCKETS}{{guard="{guard}"}}[{window}]))'
    try:
        response = httpx.get(f"{address.rstrip('/')}/api/v1/query", params={"query": query}, timeout=30)
        body = response.json()
        if body["status"] != "success":
            raise AuditFilesError(f"{address}: {body.get('error', 'no success')}")
        return {float(each["metric"]["le"]): float(each["value"][1]) for each in body["data"]["result"]}
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise AuditFilesError(
            f"{address}: no answer of Prometheus' HTTP API ({error}); wanted a Prometheus server's address, or a file "
            "of what /metrics said"
        ) from error


def _read(path: Path, guard: str) -> dict[float, float]:
    try:
        families = [*cast(Any, text_string_to_metric_families)(path.read_text())]
    except (OSError, ValueError) as error:
        raise AuditFilesError(f"{path}: not Prometheus' text ({error})") from error
    return {
        math.inf if (le := each.labels["le"]) == "+Inf" else float(le): each.value
        for family in families
        for each in family.samples
        if each.name == _BUCKETS and each.labels.get("guard") == guard
    }
