"""What attacks did to a bystander and to the server."""

from typing import Any

from benchmarks.measurements.results import Results
from benchmarks.measurements.text import bullets, measured, paragraph, section, table


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    normal = row["seconds_until_normal"]
    return (
        f"{row['attack']}: {row['what']}",
        f"{row['disturbed']} of {row['asked']}",
        f"{row['median_seconds_before']:.2f} / {row['median_seconds_during']:.2f} / {row['slowest_seconds']:.2f}",
        f"{row['memory_before_mb']} / {row['memory_peak_mb']}",
        "never" if normal is None else f"{normal:.1f}",
    )


def attacks_section(results: Results) -> str:
    """A row for each attack; empty where none was run."""
    found = results.read_if_there("attacks")
    if found is None:
        return ""
    rows = found["rows"]
    disturbed, asked = (sum(row[name] for row in rows) for name in ("disturbed", "asked"))
    worst = max(rows, key=lambda row: row["disturbed"] / max(1, row["asked"]))
    return section(
        "Attacks",
        paragraph(
            "A demo's server under attack, while somebody at another address goes on asking, by turns on a connection "
            "that is kept and on a new one. A request of theirs is disturbed if it gets no answer or another, or takes "
            "more than ten times the median before, and at least a second. Memory is what the server has resident, "
            "with its model. Wanted: fewer than 1 % disturbed. "
            f"Of all attacks together it is {disturbed / asked:.2%}, of the worst one, {worst['attack']}, "
            f"{worst['disturbed'] / worst['asked']:.0%}."
        ),
        measured(found, f"{len(rows)} attacks of {found['seconds']:g} seconds, each on a server of its own"),
        table(
            ("attack", "disturbed", "seconds: before / during / slowest", "MB: before / peak", "seconds until normal"),
            [_row(row) for row in rows],
        ),
        paragraph("What the attackers met:"),
        bullets(f"{row['attack']}: {row['met']}." for row in rows),
    )
