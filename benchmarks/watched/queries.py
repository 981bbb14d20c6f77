"""Every query of every dashboard, as Grafana would send it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.watched.components import JOB

DASHBOARDS = Path(__file__).resolve().parents[2] / "docker" / "grafana" / "dashboards"
_RANGE = "15m"
_RATE = "1m"
_VARIABLES = {"$job": JOB, "$__rate_interval": _RATE, "$__range": _RANGE}


@dataclass(frozen=True)
class Asked:
    """One query of a panel. `panel`: as in the dashboard's file."""

    dashboard: str
    panel: dict[str, Any]
    expr: str
    legend: str
    is_instant: bool
    """Whether it is asked for what there is now, or for what there was too."""

    @property
    def title(self) -> str:
        """The panel's."""
        title: str = self.panel["title"]
        return title


def filled(expr: str) -> str:
    """With values in the place of a dashboard's variables."""
    for name, value in _VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


def asked() -> Iterator[Asked]:
    """All of them, in the order of the dashboards."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        for panel in found["panels"]:
            for target in panel.get("targets", ()):
                legend, instant = target.get("legendFormat", ""), target["instant"]
                yield Asked(found["uid"], panel, filled(target["expr"]), legend, instant)
