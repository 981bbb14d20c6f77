"""Starts: time until a model answers."""

from benchmarks.measurements.results import Results
from benchmarks.measurements.text import measured, paragraph, section, table


def startup_section(results: Results) -> str:
    """Seconds of each start, and of what it is built on; empty where nobody measured."""
    found = results.read_if_there("startup")
    if found is None:
        return ""
    rows = [
        (row["start"], ", ".join(f"{each:.1f}" for each in row["seconds"]), f"{row['times_own']:.2f}")
        for row in found["rows"]
    ]
    return section(
        "Starts",
        paragraph(
            f"Seconds until a model of random weights ({found['gigabytes']} GB of {found['dtype']}) answers, by one "
            "process after another in turn, on files that the system had in memory. A first start hashes the weights "
            "while they are loaded; later ones know their digest. transformers' row is a program that loads the model "
            "and ends: it has no server, and no batching, to start. The last column is the median over that of the "
            "engine's own row."
        ),
        measured(found, "one machine, no guards"),
        table(("start", "seconds", "times its own"), rows),
    )
