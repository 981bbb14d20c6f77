"""People's clients against the demo, and other projects' own tests of the API."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.clients.drivers.steps import STEPS
from benchmarks.clients.registry import STYLES
from benchmarks.measurements.results import Results, Row, matching
from benchmarks.measurements.text import bullets, measured, paragraph, section, table

_SHOWN = {"passed": "yes", "failed": "**no**"}
_LONGEST = 200
MEANINGS = (
    "`answer`: a question, answered whole; `stream`: the same as a stream.",
    "`structured`: an object of a schema, as the client asks for one.",
    "`log-likelihoods`: lm_eval's multiple-choice task, with a score at its end.",
    "`abstention`: what a guard withholds is shown once, or is the client's own exception for refusals.",
    "`history`: a further turn after an answer and an abstention, with nothing but what the client itself appends. It "
    "is accepted and shows something; whether the guard lets it pass is not judged here.",
)


def _cell(rows: Sequence[Row], step: str) -> str:
    found = matching(rows, step=step)
    return _SHOWN[found[0]["outcome"]] if found else "-"


def _line(rows: Sequence[Row], client: str, style: str) -> tuple[str, ...]:
    own = matching(rows, client=client, style=style)
    version = f"{own[0]['package']} {own[0]['version'] or '-'}"
    return (f"`{client}`", version, f"`{style}`", *(_cell(own, step) for step in STEPS))


def _commits(rows: Sequence[Row]) -> str:
    """Where clients were driven one after another: the command above is that of the last."""
    counts = Counter(row["commit"] for row in rows)
    parts = [f"{count} at commit `{commit}`" for commit, count in counts.items()]
    return f"; {', '.join(parts)}" if len(parts) > 1 else ""


def clients_section(results: Results) -> str:
    """What each client does; empty where none was driven."""
    found = results.read_if_there("clients")
    if found is None:
        return ""
    rows = found["rows"]
    pairs = [(row["client"], style) for row in rows for style in STYLES if row["style"] == style]
    failures = [
        f"`{row['client']}`, `{row['style']}`, {row['step']}: {row['said'][:_LONGEST]}"
        for row in matching(rows, outcome="failed")
    ]
    return section(
        "Clients",
        paragraph(
            "Each client asks a running server as its documentation says, and sends back what it was given. A dash: "
            "the client has no such thing, or it was not tried."
        ),
        measured(found, f"{len(rows)} steps of {len({row['client'] for row in rows})} clients{_commits(rows)}"),
        bullets(MEANINGS),
        table(
            ("client", "package", "abstention style", *(f"`{step}`" for step in STEPS)),
            [_line(rows, client, style) for client, style in dict.fromkeys(pairs)],
        ),
        *([paragraph("What failed:"), bullets(failures)] if failures else []),
    )


def conformance_section(results: Results) -> str:
    """How many tests of other projects pass, and which do not apply; empty where none was run."""
    found = results.read_if_there("conformance")
    if found is None:
        return ""
    rows = found["rows"]
    return section(
        "Other projects' own tests",
        paragraph(
            "Tests of openai-python and of vLLM's OpenAI entry points, from copies, against a running server; only the "
            "model's name is replaced. A test that fails and is listed in `benchmarks/conformance/exemptions.py` does "
            "not apply; one that passes counts whether it is listed or not."
        ),
        measured(found, f"{sum(_total(row) for row in rows)} tests"),
        table(
            ("tests of", "version", "flags of serve", "passed", "failed", "not applicable", "skipped"),
            [_counts(row) for row in rows],
        ),
        *(_listed(row) for row in rows),
    )


def _total(row: dict[str, Any]) -> int:
    return int(row["passed"] + row["failed"] + row["not applicable"] + row["skipped"])


def _counts(row: dict[str, Any]) -> tuple[str, ...]:
    counts = (str(row[name]) for name in ("passed", "failed", "not applicable", "skipped"))
    flags = " ".join(row["serve"])
    return (row["suite"], row["version"] or "-", f"`{flags}`" if flags else "-", *counts)


def _listed(row: dict[str, Any]) -> str:
    said = [f"{reason} ({found['count']})" for reason, found in row["reasons"].items()]
    said += [f"Fails: `{one['test']}`: {one['said'][:_LONGEST]}" for one in row["failures"]]
    return "\n\n".join([paragraph(f"What of {row['suite']} does not apply or fails:"), bullets(said)]) if said else ""
