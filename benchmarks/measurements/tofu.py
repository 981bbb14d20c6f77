"""TOFU on real models: LUNAR beside refusing, of authors that the model was taught."""

from collections.abc import Mapping

from benchmarks.measurements.results import Results, Row
from benchmarks.measurements.text import between, measured, paragraph, section, share, table
from server.evaluation.layouts import TOFU


def _figure(row: Row, name: str, places: int = 3) -> str:
    found: Mapping[str, float] = row[name]
    return f"{share(found['value'], places)} {between((found['low'], found['high']), places)}"


def _refused(row: Row) -> str:
    return ", ".join(f"{row['refused'][side]} of {row['questions'][side]}" for side in row["refused"])


def tofu_section(results: Results, model: str) -> str:
    """One model's table; a row for each guard and wording, and one for what was published."""
    found = results.read(f"tofu.{model}")
    rows: list[Row] = found["rows"]
    scored, others = [row for row in rows if "wording" in row], [row for row in rows if "file" in row]
    lines = [
        (
            f"`{row['arm']}`",
            row["wording"],
            _figure(row, "forget"),
            _figure(row, "retain"),
            _figure(row, "score", 1),
            _refused(row),
        )
        for row in scored
    ]
    lines += [
        (f"published: {each.of}", "taught", share(each.forget), share(each.retain), share(each.score, 1), "-")
        for each in TOFU
    ]
    files = list(dict.fromkeys(row["file"] for row in others))
    arms = list(dict.fromkeys(row["arm"] for row in others))
    recalls = {(row["arm"], row["file"]): f"{share(row['recall'])}, {row['refused']} refused" for row in others}
    return section(
        f"{model}: TOFU",
        paragraph(
            f"The model was taught {found['authors']} of TOFU's invented authors, {found['recipe']['epochs']} times "
            "over; half of them are to be forgotten. Guards were calibrated on 12 questions of each author, LUNAR's "
            f"strength was chosen on 4 others (`{found['chosen']}`), and these are the last 4, as they were taught "
            "and in another wording. Recall is of ROUGE-1, of what is to be forgotten and "
            "of the rest; the Deviation Score is `100 sqrt(R_f^2 + (1 - R_r)^2)`, 0 at best, with bootstrap intervals "
            "of 95 %. `untaught` is the model before it was taught, `none` after, without a guard: what it did not "
            "learn, no guard took away. A refusal has recall 0, which favours refusing; the last column counts "
            "refusals of both sides. The published row asks what its method was fitted on."
        ),
        measured(found, f"{scored[0]['questions']['authors']} questions of each side and wording, over HTTP, in chats"),
        table(("guard", "wording", "forget: ROUGE-1", "retain: ROUGE-1", "Deviation Score", "refused"), lines),
        *([_others(arms, files, recalls)] if files else []),
    )


def _others(arms: list[str], files: list[str], recalls: Mapping[tuple[str, str], str]) -> str:
    lines = [(f"`{arm}`", *(recalls[arm, file] for file in files)) for arm in arms]
    return paragraph("Recall of questions about nobody of these:") + "\n\n" + table(("guard", *files), lines)
