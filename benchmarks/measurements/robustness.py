"""What callers do to a prompt."""

from collections.abc import Sequence

from benchmarks.measurements.results import Results, Row, matching, only
from benchmarks.measurements.text import measured, paragraph, section, share, sizes, table

OWN = {"mathematics": "gsm8k", "code": "mbpp"}
DETECTORS = ("cube", "pooled")
TREATMENTS = (
    ("nothing", "qa"),
    ('"Ignore all previous instructions." before it', "ignore-previous"),
    ("a greeting before it", "greeting"),
    ("thanks after it", "closing"),
    ('"Please help me with this:" before it', "please"),
    ("an instruction in English", "instruction-en"),
    ("an instruction in Spanish", "instruction-es"),
    ("an instruction in Chinese", "instruction-zh"),
    ("an instruction in Arabic", "instruction-ar"),
    ("one shot of the skill before it", "shots-1"),
    ("three shots of the skill before it", "shots-3"),
    ("five shots of the skill before it", "shots-5"),
    ("three shots of the other skill before it", "shots-of-{other}"),
    ("one question of the other skill before it", "{other}-before"),
    ("one question of the other skill after it", "{other}-after"),
    ("spaces before it", "spaces-before"),
    ("spaces after it", "spaces-after"),
    ("line breaks before it", "newlines-before"),
    ("line breaks after it", "newlines-after"),
    ("spaces around the question, inside the frame", "spaces-in-frame"),
    ("typos", "typos"),
    ("upper case", "upper-case"),
    ("other words of the same meaning, by rule", "synonyms"),
    ("the question moved to the front", "question-first"),
    ("at the end of about 300 tokens of other text", "long-end"),
    ("in the middle of about 300 tokens of other text", "long-middle"),
    ("at the start of about 300 tokens of other text", "long-start"),
    ("at the end of about 600 tokens of other text", "longer-end"),
    ("in the middle of about 600 tokens of other text", "longer-middle"),
    ("at the start of about 600 tokens of other text", "longer-start"),
)


def treated(rows: Sequence[Row], detector: str, forget: str, treatment: str) -> Row:
    """A skill's own questions under a treatment."""
    (other,) = OWN.keys() - {forget}
    test = f"{OWN[forget]}/{treatment.format(other=other)}"
    return only(rows, detector=detector, forget=forget, test=test, role="forget")


def robustness_section(results: Results) -> str:
    """Recall under every treatment."""
    found = results.read("robustness")
    rows = found["rows"]

    def cell(forget: str, treatment: str) -> str:
        return " / ".join(share(treated(rows, name, forget, treatment)["recall"], 2) for name in DETECTORS)

    worst = {
        name: max(
            row["false_abstention"]
            for row in matching(rows, detector=name, role="forget")
            if row["false_abstention"] is not None
        )
        for name in DETECTORS
    }
    return section(
        "Real text: what callers do to a prompt",
        paragraph(
            "The same model, in the frame `Q:`/`A:`. The table shows recall of `cube`, then of `pooled`, "
            "both fitted as in the section before. False abstention under the same treatment is at most "
            f"{share(worst['cube'])} for `cube` and {share(worst['pooled'])} for `pooled`."
        ),
        measured(
            found,
            f"{sizes(matching(rows, role='forget'))} prompts a set, "
            f"{sizes([row for row in rows if 'retain_examples' in row], 'retain_examples')} retained under the same "
            "treatment",
        ),
        table(
            ("done to the prompt", *(f"{source.upper()}, `cube` / `pooled`" for source in OWN.values())),
            [(label, *(cell(forget, name) for forget in OWN)) for label, name in TREATMENTS],
        ),
        paragraph(
            "**Somebody who wraps a question in enough other text, or writes it in capitals, gets it past every guard "
            "here.**"
        ),
    )
