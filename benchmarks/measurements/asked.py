"""Real models, asked over HTTP: what their guards refuse."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measurements.results import Results, Row, matching
from benchmarks.measurements.text import between, bullets, measured, paragraph, section, share, sizes, table

LANGUAGE = "language-"
HEADS = {
    "forget": "Of the skill: recall",
    "retain": "Not of the skill: false abstention",
    "arguable": "Arguable: share refused",
}
SHAPES = (
    "`bare` and `qa` are sent to `/v1/completions`, as they are and as `Q:`/`A:`; all else is chat.",
    "`start-of-N`, `middle-of-N`, `end-of-N`: within N tokens of WikiText and of MMLU's other questions; "
    "`other-text-N` is such text alone.",
    "`before-X`, `after-X`, `after-3-X`: a task of X after it, one before it, three worked examples of X before it.",
    "`wrong-letters`: 5 % of the characters mistyped; `swapped-letters`: in every eighth word.",
    "`later-turn`: the next user turn after an unrelated exchange.",
    "`conversation`: a question of the skill, ten harmless turns, and the skill again; turns of one conversation are "
    "not independent, as the interval of `between` takes them to be. `answered-later`: a question that was put off is "
    "asked to be answered after another exchange.",
    "`written`: answers of 48 tokens; `missed` are prompts that were let through.",
    "`harmless`: written for this, numbers without mathematics, words of programming without code, everyday requests.",
)


def _shown(row: Row) -> str:
    return f"{share(row['rate'], 2)} {between((row['low'], row['high']), 2)} of {row['total']}"


def _stages(row: Row) -> str:
    if not row["while_written"]:
        return f"{row['at_prompt']}, 0"
    return f"{row['at_prompt']}, {row['while_written']} (median {row['tokens_median']:g})"


def _cells(rows: Sequence[Row], guards: Sequence[str], head: str) -> str:
    def line(cell: str) -> tuple[str, ...]:
        found = {row["guard"]: _shown(row) for row in matching(rows, cell=cell)}
        return (f"`{cell}`", *(found.get(guard, "-") for guard in guards))

    if not rows:
        return ""
    return table(
        (head, *(f"`{guard}`" for guard in guards)), [line(cell) for cell in dict.fromkeys(row["cell"] for row in rows)]
    )


def _skill(rows: Sequence[Row], skill: str) -> list[str]:
    """The tables of one skill: each role's cells, then what was refused at the prompt and while it was written."""
    guards = list(dict.fromkeys(row["guard"] for row in rows))
    prompts = [row for row in rows if "while_written" not in row]
    longer = [row for row in rows if "while_written" in row]
    parts = [f"#### {skill.capitalize()}"]
    parts += [_cells(matching(prompts, role=role), guards, head) for role, head in HEADS.items()]
    if longer:
        parts.append(
            table(
                ("longer answers", "guard", "role", "refused", "at the prompt, while written (tokens)"),
                [(f"`{row['cell']}`", f"`{row['guard']}`", row["role"], _shown(row), _stages(row)) for row in longer],
            )
        )
    return [part for part in parts if part]


def _languages(rows: Sequence[Row]) -> list[str]:
    """Each language's guard against each language's questions."""
    asked = [row for row in rows if row["cell"].startswith("xquad-")]
    if not asked:
        return []
    cells = sorted({row["cell"] for row in asked})

    def line(guard: str) -> tuple[str, ...]:
        found = {row["cell"]: row for row in matching(asked, guard=guard)}
        return (f"`{guard}`", *(share(found[cell]["rate"], 2) if cell in found else "-" for cell in cells))

    guards = dict.fromkeys(row["guard"] for row in asked)
    head = ("share refused", *(cell.removeprefix("xquad-") for cell in cells))
    return ["#### Languages: XQuAD's questions", table(head, [line(guard) for guard in guards])]


def _model(found: Mapping[str, Any]) -> list[str]:
    rows: list[Row] = found["rows"]
    skills = dict.fromkeys(row["skill"] for row in rows)
    guards = ", ".join(
        f"`{guard['guard']}` ({guard['method']}, {guard['skill']}, digest `{guard['digest'][:12]}`)"
        for guard in found["guards"]
    )
    answered = f"answered at {', '.join(f'`{commit}`' for commit in found['commits'])}"
    sample = f"{sizes(rows, 'total')} prompts a cell, {answered}; guards: {guards}"
    parts = [f"### {found['model']}", measured(found, sample)]
    for skill in skills:
        if not skill.startswith(LANGUAGE):
            parts += _skill(matching(rows, skill=skill), skill)
    return parts + _languages([row for row in rows if row["skill"].startswith(LANGUAGE)])


def asked_section(results: Results) -> str:
    """Every model that was asked; nothing where none was."""
    files = [results.read(f"asked.{model}") for model in results.models("asked")]
    if not files:
        return ""
    return section(
        "Real models, over HTTP",
        paragraph(
            "`skillguard serve` with one guard at a time, asked on the test side as users ask. Refused is what came "
            'back with `finish_reason` "content_filter". Intervals are exact ones of 95 %. Most answers of Qwen and '
            "SmolLM2 were given on an H200, by torch 2.11, and so were those of ESU's table; the environments named "
            "below are those of the machine that put them together. Guards of languages were calibrated again after "
            "a first look at these tables: English texts that quote another language had cost a German guard its "
            "threshold. A cell of 40 prompts without a hit leaves up to .09."
        ),
        bullets(SHAPES),
        *(part for found in files for part in _model(found)),
    )
