"""A server under the real Prometheus and Alertmanager."""

from collections.abc import Mapping
from typing import Any

from benchmarks.measurements.results import Results, matching
from benchmarks.measurements.text import bullets, measured, paragraph, section, table


def _names(alerts: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in alerts) or "none"


def _load(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (str(found["requests"]), str(found["withheld"]), f"{found['share']:.3f}")
    return (name, *counts, _names(found["firing"]), _names(found["told"]))


def watched_section(results: Results) -> str:
    """What alerts did and what dashboards' queries gave; empty where nothing was watched."""
    found = results.read_if_there("watched")
    if found is None:
        return ""
    rows, spike, stopped = found["rows"], found["spike"]["alert"], found["stopped"]
    versions = " and ".join(f"{name} {version}" for name, version in found["versions"].items())
    empty = [f"`{row['panel']}`: `{row['query']}`" for row in rows if not row["series"]]
    lines = []
    for name in dict.fromkeys(row["dashboard"] for row in rows):
        of = matching(rows, dashboard=name)
        panels = len({row["panel"] for row in of})
        lines.append((f"`{name}`", str(panels), str(len(of)), str(sum(bool(row["series"]) for row in of))))
    return section(
        "Alerts and dashboards",
        paragraph(
            f"The demo under {versions}, with the rules that the chart and the compose file have. Scrapes and "
            "evaluations are a second apart; alerts wait for two, whatever their `for` says. Last week is made up: "
            f"{found['last week']:.0%} of its answers abstained."
        ),
        measured(found, f"{len(rows)} queries; {found['usual']['requests']} and {found['spike']['requests']} requests"),
        table(
            (
                "load",
                "requests",
                "withheld",
                "share of the hour",
                "alerts that fire",
                "that Alertmanager told its webhook",
            ),
            [_load("as last week", found["usual"]), _load("the skill only", found["spike"])],
        ),
        bullets(
            [
                f"`{spike['labels']['alertname']}` was told {spike['seconds']} s after the last answer, "
                f"`{stopped['labels']['alertname']}` {stopped['seconds']} s after the server had stopped.",
                f"`promtool check metrics` has to say of `/metrics`: {found['lint'].strip() or 'nothing'}.",
                "Series with a number in them were given by the queries of:",
            ]
        ),
        table(("dashboard", "panels", "queries", "that gave data"), lines),
        *([paragraph("Without data:"), bullets(empty)] if empty else []),
    )
