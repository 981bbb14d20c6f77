"""Real text: the table of Key Space Detection, and the model that it was measured on."""

from collections.abc import Iterable, Sequence

from benchmarks.measurements.results import Results, Row, matching, only
from benchmarks.measurements.text import between, bullets, measured, paragraph, section, share, sizes, table
from benchmarks.real_text.rows import POOLED
from benchmarks.real_text.sheets import AUROC, DIAGONAL, FALSE_ABSTENTION, OFF_DIAGONAL, RECALL

NEEDED = {"mathematics": "mmlu-mathematics", "code": "mmlu-computing"}
"""MMLU's subjects that need what is forgotten."""
COMPARED = ("gsm8k", "mbpp", "wikitext2")
"""The sets that both models did not see."""
MODEL, SMALLER = "realtext_model", "realtext5m"


def own(rows: Sequence[Row], variant: str, forget: str) -> Row:
    """A skill's own test prompts."""
    return only(rows, variant=variant, forget=forget, meaning="own")


def others(rows: Sequence[Row], variant: str, forget: str) -> Row:
    """All prompts that are to be kept, together."""
    return only(rows, variant=variant, forget=forget, test=POOLED)


def languages(rows: Sequence[Row]) -> list[str]:
    """The languages that were forgotten."""
    return [name for name in dict.fromkeys(row["forget"] for row in rows) if name.startswith("language-")]


def _skill_lines(rows: Sequence[Row], variants: Sequence[str]) -> Iterable[Sequence[str]]:
    for forget, needing in NEEDED.items():
        for variant in variants:
            caught, kept = own(rows, variant, forget), others(rows, variant, forget)
            yield (
                forget,
                f"`{variant}`",
                f"{share(caught['recall'])} {between((caught['low'], caught['high']))}",
                share(kept["false_abstention"], 4),
                share(kept["auroc"], 4),
                share(only(rows, variant=variant, forget=forget, test=needing)["recall"]),
            )


def _most_of_another(rows: Sequence[Row], variant: str) -> str:
    tests = {f"xquad-{name.removeprefix('language-')}" for name in languages(rows)}
    wrong = [
        row
        for forget in languages(rows)
        for row in matching(rows, variant=variant, forget=forget, meaning="other")
        if row["test"] in tests
    ]
    most = max(row["false_abstention"] for row in wrong)
    pairs = [
        f"{row['test'].removeprefix('xquad-')} by {row['forget'].removeprefix('language-')}"
        for row in wrong
        if row["false_abstention"] == most
    ]
    return f"{share(most)} ({', '.join(pairs)})" if most else share(most)


def table_section(results: Results) -> str:
    """Detection by three variants."""
    found, parameters = results.read("real_text"), results.read("heldout")["parameters"]
    rows, short = found["rows"], found["short"]
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    paper, default = (others(rows, name, "mathematics")["false_abstention"] for name in ("paper", "default"))
    worst = max(
        (
            row
            for row in matching(rows, variant="paper", forget="mathematics", meaning="other")
            if row["test"] != POOLED
        ),
        key=lambda row: float(row["false_abstention"]),
    )
    code = own(rows, "default", "code")
    counts = {forget: own(rows, "default", forget)["examples"] for forget in NEEDED}
    names = [name.removeprefix("language-") for name in languages(rows)]
    language_rows = [own(rows, "default", name) for name in languages(rows)]
    return section(
        "Real text: what is refused",
        paragraph(
            f"A Llama of {parameters[MODEL] / 1e6:.0f} million parameters was trained on real text. Nobody prepared "
            "its key vectors. Held-out prompts were asked as `Q: ...\\nA:`. False abstention and AUROC are over all "
            "other sets together, without the subjects of MMLU that need the skill. The last column is the share of "
            "those subjects' prompts that was refused. Intervals are exact and hold 95 %. The section Methods "
            "describes the variants."
        ),
        measured(
            found,
            f"{counts['mathematics']:,} prompts of GSM8K, {counts['code']:,} of MBPP, {sizes(language_rows)} a "
            f"language; others {others(rows, 'default', 'mathematics')['examples']:,} for mathematics, "
            f"{others(rows, 'default', 'code')['examples']:,} for code",
        ),
        table(
            ("forget", "variant", "recall [95 %]", "false abstention", "AUROC", "of MMLU's subjects that need it"),
            _skill_lines(rows, variants),
        ),
        "Questions refused of the language that is forgotten, and the most of any other language:",
        table(
            ("variant", *names, "most of another"),
            [
                (
                    f"`{variant}`",
                    *(share(own(rows, variant, name)["recall"]) for name in languages(rows)),
                    _most_of_another(rows, variant),
                )
                for variant in variants
            ],
        ),
        paragraph(
            f"The goals for mathematics and code are recall {RECALL}, false abstention {FALSE_ABSTENTION} and AUROC "
            f"{AUROC}. The goals for a language are {DIAGONAL} of its own questions and at most {OFF_DIAGONAL} of "
            "another's. These were missed:"
        ),
        bullets(f"`{variant}`: {'; '.join(short[variant]) or 'none'}" for variant in variants),
        paragraph(
            f"`paper` refuses {paper / default:.0f} times as many of the prompts that mathematics must leave as "
            f"`default` does, and {share(worst['false_abstention'])} of {worst['test']}. That is the price of what it "
            "catches of MMLU beyond `default`. No variant that was fitted on one source takes MMLU's subjects away. "
            f"`default` misses {code['examples'] - code['hits']} of {code['examples']} prompts of code."
        ),
        paragraph(
            "[`real_text.md`](../benchmarks/results/real_text.md) holds the whole matrix of languages, the worst sets, "
            "and next-token accuracy behind each guard."
        ),
    )


def heldout_section(results: Results) -> str:
    """What the model predicts by itself."""
    found = results.read("heldout")
    rows, parameters = found["rows"], found["parameters"]
    return section(
        "The model of the real text",
        paragraph(
            "The model answers nothing right, and a guard needs no right answers. The table shows bits per byte of "
            "held-out answers. The smaller model of the measuring data was trained on XQuAD whole and on part of "
            "MMLU; those sets compare nothing and are left out."
        ),
        measured(found, f"{sizes(rows, 'documents')} documents a set"),
        table(
            ("model", "parameters", *COMPARED),
            [
                (
                    f"`{model}`",
                    f"{parameters[model]:,}",
                    *(share(only(rows, model=model, test=test)["bits_per_byte"], 2) for test in COMPARED),
                )
                for model in (MODEL, SMALLER)
            ],
        ),
    )
