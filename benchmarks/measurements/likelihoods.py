"""MMLU by lm_eval's log-likelihoods, behind a guard and on vLLM's own server."""

from benchmarks.likelihoods import ALL, TASK, VLLM
from benchmarks.measurements.results import Results, Row
from benchmarks.measurements.text import measured, paragraph, section, table


def _line(row: Row) -> tuple[str, ...]:
    apart = row["largest_difference"]
    told = row["told"]
    return (
        f"`{row['server']}`",
        row["subject"],
        f"{row['right']} of {row['items']}",
        str(row["withheld"]),
        *(f"{row[name]} of {told}" for name in ("right_of_told", "vllm_right_of_told", "same_choice")),
        "-" if apart is None else f"{apart:.1g}",
    )


def likelihoods_section(results: Results) -> str:
    """Scores by server and subject; empty where nothing was measured."""
    found = results.read_if_there("likelihoods")
    if found is None:
        return ""
    items = max(row["items"] for row in found["rows"] if (row["server"], row["subject"]) == (VLLM, ALL))
    guards = ", ".join(f"`{name}`" for name in found["guards"])
    head = (
        *("server", "subject", "right", "withheld"),
        *("right of those told", "vLLM's of the same", "same choice", "largest difference"),
    )
    return section(
        "MMLU by log-likelihood",
        paragraph(
            f"lm_eval's task `{TASK}` on {found['model']}, with {guards}. Of a withheld item no choice has a "
            "log-likelihood, and lm_eval guesses. Over the others, in log-likelihood, the last column is the largest "
            "difference of a choice from what vLLM's own server says."
        ),
        measured(found, f"{items} items of MMLU's test half"),
        table(head, [_line(row) for row in found["rows"]]),
    )
