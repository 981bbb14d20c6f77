"""Writes Grafana's dashboards to docker/grafana/dashboards.

    python -m benchmarks.dashboards

A test says that the files are what this writes.
"""

import json
from pathlib import Path
from string import ascii_uppercase
from typing import cast

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from grafana_foundation_sdk.models.prometheus import Dataquery

from benchmarks.dashboards.guards import guards
from benchmarks.dashboards.overview import overview
from benchmarks.dashboards.service import serving

FOLDER = Path(__file__).resolve().parents[2] / "docker" / "grafana" / "dashboards"


def _numbered(made: Dashboard) -> Dashboard:
    """With an id of each panel, and of each of its queries, which the builder leaves to Grafana."""
    for number, panel in enumerate(made.panels or (), start=1):
        panel.id_val = number
        for letter, target in zip(ascii_uppercase, getattr(panel, "targets", None) or (), strict=False):
            cast(Dataquery, target).ref_id = letter
    return made


def written() -> dict[Path, str]:
    """Every file, and what it must hold."""
    made = [_numbered(each().build()) for each in (overview, guards, serving)]
    return {FOLDER / f"{each.uid}.json": json.dumps(each, cls=JSONEncoder, indent=1) + "\n" for each in made}


def main() -> None:
    """Writes the files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
