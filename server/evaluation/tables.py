"""Results as Markdown, for people and for pull requests."""

from collections.abc import Mapping, Sequence
from typing import Any

from server.evaluation.cells import interval, judged_labels, markdown_table, number
from server.evaluation.layouts import deviation_section, toxicity_section, unlearning_section

Results = Mapping[str, Any]


def markdown(results: Results) -> str:
    """The whole of results.md."""
    parts = [
        "# Evaluation",
        _heading(results),
        _relative_section(results),
        "## Guards",
        "Shares of prompts that were refused, with exact 95 % intervals. AUROC is of score over tau, its own suites "
        "against the others.",
        guard_table(results),
        unlearning_section(results),
        toxicity_section(results),
        deviation_section(results),
        "## Suites",
        suite_table(results),
        _notes(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(results: Results) -> str:
    settings = results["settings"]
    asked = settings["asked"]
    sampled = "greedy" if asked["temperature"] == 0 else f"temperature {asked['temperature']}, top-p {asked['top_p']}"
    return f"Model `{settings['model']}`, frame `{_code(asked['frame'])}`, {sampled}, seed {asked['seed']}."


def _code(text: str) -> str:
    return text.replace("\n", "\\n").replace("`", "'")


def _relative_section(results: Results) -> str:
    """Nothing where no suite has answers that are right or wrong."""
    says = (
        "Accuracy with the guard over accuracy without, with its 95 % interval over paired items; an answer that is "
        "withheld counts as wrong. **Bold**: what the guard is to forget."
    )
    labels = judged_labels(results)
    return "\n\n".join(["## Relative performance", says, relative_table(results, labels)]) if labels else ""


def relative_table(results: Results, labels: Sequence[str]) -> str:
    """Rows guards, columns skills."""
    rows = []
    for guard in results["guards"]:
        cells = []
        for label in labels:
            cell = interval(guard["suites"][label]["relative"], "value")
            cells.append(f"**{cell}**" if guard["suites"][label]["own"] else cell)
        rows.append([f"`{guard['guard']}`", *cells])
    return markdown_table(["guard", *labels], rows)


def guard_table(results: Results) -> str:
    """What each guard catches and what it costs."""
    rows = [
        [
            f"`{guard['guard']}`",
            interval(guard["recall"], "rate"),
            interval(guard["false_abstention"], "rate"),
            number(guard["auroc"], 4),
        ]
        for guard in results["guards"]
    ]
    return markdown_table(["guard", "recall", "false abstention", "AUROC"], rows)


def suite_table(results: Results) -> str:
    """What was asked, and what the model does without a guard."""
    sources = results["settings"]["suites"]
    rows = [
        [
            suite["label"],
            suite["kind"],
            sources[suite["label"]]["source"],
            str(sources[suite["label"]]["shots"]),
            str(suite["items"]),
            interval(suite["accuracy"], "rate"),
            str(suite["unread"]),
        ]
        for suite in results["suites"]
    ]
    return markdown_table(
        ["suite", "kind", "source", "shots", "items", "accuracy without a guard", "nothing to judge"], rows
    )


def _notes(results: Results) -> str:
    notes = [f"* `{guard['guard']}`: {note}." for guard in results["guards"] for note in guard["notes"]]
    zero = [suite["label"] for suite in results["suites"] if suite["accuracy"] and not suite["accuracy"]["hits"]]
    if zero:
        notes.append(f"* Nothing right without a guard, so no relative performance: {', '.join(zero)}.")
    for suite in results["suites"]:
        if 2 * suite["repeats"] > suite["rows"]:
            notes.append(
                f"* {suite['label']}: {suite['repeats']} of {suite['rows']} rows repeat others and were asked once: is "
                "the field the right one?"
            )
        if suite["left_out"]:
            notes.append(f"* {suite['label']}: {suite['left_out']} items do not fit into the context, left out.")
    if isolation := results["settings"]["sandbox"]:
        network = "could reach the network" if isolation["network"] else "had no network"
        files = "could write where its user may" if isolation["files"] else "could write nowhere outside"
        notes.append(f"* Generated code ran in a sandbox of its own process; it {network} and {files}.")
    return "\n".join(["## Notes", "", *notes]) if notes else ""
