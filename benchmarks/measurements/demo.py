"""The demo: every shipped guard, and the layout of ESU's figure 4."""

from collections.abc import Sequence

from benchmarks.measurements.results import Results, Row, matching, only
from benchmarks.measurements.text import between, measured, paragraph, section, share, sizes, span, table

NO_GUARD = "none"
METHODS = {"na": "Neuron Adjust", "sp": "Selective Pruning", "ksd": "Key Space Detection"}


def own_skill(guard: str) -> str:
    """What a shipped guard forgets, by its name."""
    return guard.partition("-")[2]


def guards(rows: Sequence[Row]) -> list[str]:
    """The guards that were served, in the file's order."""
    return [name for name in dict.fromkeys(row["guard"] for row in rows) if name != NO_GUARD]


def lowest(rows: Sequence[Row], guard: str) -> Row:
    """The skill that a guard was not to forget and that suffers most."""
    others = [row for row in matching(rows, guard=guard) if row["skill"] != own_skill(guard)]
    return min(others, key=lambda row: float(row["relative"]))


def _cell(row: Row) -> str:
    return f"{share(row['relative'])} {between(row['relative_interval'])}"


def demo_section(results: Results) -> str:
    """What each guard takes away and leaves."""
    found = results.read("demo_skills")
    rows = found["rows"]
    unguarded = matching(rows, guard=NO_GUARD)
    lines = []
    for guard in guards(rows):
        worst = lowest(rows, guard)
        named = f" ({worst['skill']})" if worst["relative"] < 1 else ""
        lines.append((f"`{guard}`", _cell(only(rows, guard=guard, skill=own_skill(guard))), _cell(worst) + named))
    harmed = [f"`{name}`" for name in guards(rows) if name.startswith("ksd") and lowest(rows, name)["relative"] < 1]
    adjusted = results.manifest("na-mathematics")["parameters"]["fraction"]
    return section(
        "The demo: what each guard takes away and leaves",
        paragraph(
            f"Every guard was served alone and asked held-out prompts of all {len(unguarded)} skills over HTTP. The "
            "table shows exact match with the guard over exact match without, with a paired bootstrap interval of "
            f"95 %. Without a guard exact match is {span(row['exact_match'] for row in unguarded)}."
        ),
        measured(found, f"{sizes(rows, 'n')} prompts a skill"),
        table(("guard", "its own skill", f"lowest of the {len(unguarded) - 1} others"), lines),
        paragraph(
            f"A detector that leaves less than 1.000 ({', '.join(harmed)}) refuses some prompts of that other skill, "
            "or fires while the model writes some of its answers."
            if harmed
            else ""
        ),
        paragraph(f"`na-mathematics` adjusts {100 * adjusted:.2f} % of the neurons. ESU adjusts up to 3 %."),
        paragraph(
            "**These figures, and those of the next section, are not a clean test.** The prompts were held out from "
            "training and fitting. The model's training wordings, the variant of Key Space Detection and the share of "
            "neurons of Neuron Adjust were settled while results on these prompts were known. The model's keys were "
            "trained to tell skills apart."
        ),
    )


def _label(guard: str) -> str:
    method, _, percent = guard.split("-", 2) if guard.count("-") == 2 else (*guard.split("-"), "")
    return METHODS[method] + (f", {percent} %" if percent else "")


def figure4_section(results: Results) -> str:
    """Neuron Adjust and Selective Pruning by their share of neurons, beside the detector."""
    found = results.read("figure4")
    rows, suites = found["rows"], found["settings"]["suites"]

    def cell(guard: str) -> str:
        return " / ".join(share(only(rows, guard=guard, skill=skill)["relative"]) for skill in suites)

    by_skill = {
        skill: [guard for guard in dict.fromkeys(row["guard"] for row in rows) if guard.split("-")[1] == skill]
        for skill in ("mathematics", "code")
    }
    model = results.manifest("na-mathematics")["model"]
    less, more = (only(rows, guard=f"sp-code-{percent}", skill="code")["relative"] for percent in ("0.5", "1.5"))
    return section(
        "The demo in the layout of ESU's figure 4",
        paragraph(
            f"Exact match relative to no guard, on {' / '.join(suites)}. Neuron Adjust acts at ESU's shares of "
            "neurons. Selective Pruning prunes feed-forward neurons in one step."
        ),
        measured(found, f"{sizes(suites.values(), 'items')} prompts a skill"),
        table(
            ("guard", "forget mathematics", "forget code"),
            [
                (_label(mathematics), cell(mathematics), cell(code))
                for mathematics, code in zip(by_skill["mathematics"], by_skill["code"], strict=True)
            ],
        ),
        paragraph(
            "ESU prunes 1.5 % for mathematics and 0.01 % for code. The latter is less than one of this model's "
            f"{model['layers'] * model['d_ff']:,} neurons. To prune more does not always take more away: of code "
            f"{share(less)} is left at 0.5 %, and {share(more)} at 1.5 %."
        ),
        "![Relative performance, as bars](../benchmarks/results/figure4.png)",
    )
