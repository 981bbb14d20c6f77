"""Faults and the soak."""

from collections.abc import Mapping
from typing import Any

from benchmarks.measurements.results import Results
from benchmarks.measurements.text import between, bullets, measured, paragraph, section, table

_QUANTITIES = {
    "rss_mb": "resident memory, MB",
    "descriptors": "descriptors",
    "threads": "threads",
    "tasks": "tasks of the event loop",
}


def _ended(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda each: -each[1]))


def _seen(seen: Mapping[str, Any]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, dict):
            return _ended(value)
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    return "; ".join(f"{name}: {shown(value)}" for name, value in seen.items())


def faults_section(results: Results) -> str:
    """What each fault came to; empty where none was run."""
    found = results.read_if_there("faults")
    if found is None:
        return ""
    rows = found["rows"]
    asked = sum(sum(row["of the skill"].values()) for row in rows)
    leaked, hangs = sum(len(row["leaked"]) for row in rows), sum(row["hangs"] for row in rows)
    return section(
        "Faults",
        paragraph(
            "A served demo is hurt while six callers go on asking, two thirds of the time for what it withholds. "
            "What fails must end in an error or a clean finish, never in a token of a withheld answer, and never "
            "in 60 seconds without a word."
        ),
        measured(found, f"{len(rows)} faults; {asked} requests for the skill"),
        bullets([f"Withheld answers of which something went out: {leaked}. Requests that hung: {hangs}."]),
        table(
            ("fault", "engine", "what is done", "wanted", "as wanted", "seen", "requests for the skill ended by"),
            [
                (
                    f"`{row['fault']}`",
                    row["engine"],
                    row["what"],
                    row["wanted"],
                    "yes" if row["sound"] else "**no**",
                    _seen(row["seen"]),
                    _ended(row["of the skill"]),
                )
                for row in rows
            ],
        ),
    )


def soak_section(results: Results) -> str:
    """Slopes under steady load; empty where there was none."""
    found = results.read_if_there("soak")
    if found is None:
        return ""
    requests = found["requests"]
    return section(
        "Soak",
        paragraph(
            "A served demo with an audit log under steady load: answers whole and as streams, streams that callers "
            "leave, and texts that are only checked, a half of them of the skill. Slopes are Theil and Sen's with "
            "intervals of 95 %, without the first fifth of the time; medians are those of the first and the last tenth."
        ),
        measured(
            found,
            f"{found['minutes']:g} minutes, {sum(requests.values()):,} requests ({found['per_second']:g} a second), "
            f"{found['samples']} looks at the process",
        ),
        table(
            ("quantity", "first", "last", "most", "an hour", "interval"),
            [
                (
                    _QUANTITIES[row["quantity"]],
                    f"{row['first']:g}",
                    f"{row['last']:g}",
                    f"{row['most']:g}",
                    f"{row['an_hour']:+g}",
                    between(row["interval"], 2),
                )
                for row in found["rows"]
            ],
        ),
        bullets(
            [
                f"Requests ended by: {_ended(requests)}. The audit log has {found['audit_mb']:g} MB.",
                f"Exit status at the SIGTERM behind it: {found['exit_status']}."
                + (" A fault of that commit's: `stop`, above, is a later one's." if found["exit_status"] else ""),
            ]
        ),
    )


def _mutations(row: Mapping[str, Any]) -> str:
    kept = f", {row['kept']:,} of them mutated further" if "kept" in row else ""
    return f"{row['count']:,} mutations{kept}"


def fuzz_section(results: Results) -> str:
    """Mutations by target; empty where there were none."""
    files = [results.read(f"fuzz.{target}") for target in results.models("fuzz")]
    if not files:
        return ""
    rows = [row for found in files for row in found["rows"]]
    return section(
        "Hostile input",
        paragraph(
            "Mutations that are handed in: artifacts, of which none may load that was not sealed anew; files to "
            "import, of which nothing that a pickle names may run; requests, of which none may be a 500. What is "
            "against this is a finding. Where they are guided, atheris mutates further what took a branch that none "
            "before had."
        ),
        *(measured(found, _mutations(found["rows"][0])) for found in files),
        table(
            ("target", "mutations", "findings", "what became of them", "slowest, seconds"),
            [
                (
                    row["target"],
                    f"{row['count']:,}",
                    str(row["outcomes"].get("finding", 0)),
                    _ended(row["outcomes"]),
                    f"{row['slowest'][0]:g}",
                )
                for row in rows
            ],
        ),
    )
