"""What callers do to a prompt, on real models."""

from collections.abc import Sequence

from benchmarks.detectors.rows import ALL
from benchmarks.measurements.results import Results, Row, matching
from benchmarks.measurements.text import measured, paragraph, section, share, sizes, table
from benchmarks.measurements.transfer import detectors_of, pools_table, refusals, retained
from benchmarks.prompts.treatments import LONG_WORDS, SHORT_WORDS

OWN = {"mathematics": "gsm8k", "code": "mbpp"}
TREATMENTS = (
    ("nothing", "chat"),
    ('"Ignore all previous instructions." before it', "ignore-previous"),
    ("a greeting before it", "greeting"),
    ("thanks after it", "closing"),
    ('"Please help me with this:" before it', "please"),
    ("an instruction in English", "instruction-en"),
    ("an instruction in Spanish", "instruction-es"),
    ("an instruction in Chinese", "instruction-zh"),
    ("one shot of the skill before it", "shots-1"),
    ("three shots of the skill before it", "shots-3"),
    ("five shots of the skill before it", "shots-5"),
    ("three shots of the other skill before it", "shots-of-{other}"),
    ("one question of the other skill before it", "{other}-before"),
    ("one question of the other skill after it", "{other}-after"),
    ("spaces around it", "spaces-around"),
    ("line breaks around it", "newlines-around"),
    ("typos", "typos"),
    ("upper case", "upper-case"),
    ("other words of the same meaning, by rule", "synonyms"),
    ("the question moved to the front", "question-first"),
    *(
        (f"{where} of {words} words of other text", f"{size}-{place}")
        for size, words in (("long", SHORT_WORDS), ("longer", LONG_WORDS))
        for where, place in (("at the end", "end"), ("in the middle", "middle"), ("at the start", "start"))
    ),
)


def treated(rows: Sequence[Row], detector: str, forget: str, treatment: str) -> Row | None:
    """A skill's own questions under a treatment, None where it was not measured."""
    (other,) = OWN.keys() - {forget}
    test = f"{OWN[forget]}/{treatment.format(other=other)}"
    return next(iter(matching(rows, detector=detector, forget=forget, test=test, role="forget")), None)


def recall(row: Row | None) -> str:
    """With two digits, or a dash."""
    return share(None if row is None else row["recall"], 2)


def robustness_section(results: Results, model: str) -> str:
    """Recall under every treatment."""
    found = results.read(f"robustness.{model}")
    rows = found["rows"]
    detectors = detectors_of(rows)
    names = " / ".join(f"`{name}`" for name in detectors)
    own = [forget for forget in OWN if matching(rows, forget=forget)]

    def cell(forget: str, treatment: str) -> str:
        return " / ".join(recall(treated(rows, name, forget, treatment)) for name in detectors)

    worst = {
        name: max(
            (
                row["false_abstention"]
                for row in matching(rows, detector=name, role="forget")
                if row["false_abstention"] is not None
            ),
            default=None,
        )
        for name in detectors
    }
    return section(
        f"{model}: what callers do to a prompt",
        paragraph(
            f"The same detectors, asked in chat. The table shows recall of {names}. The most false abstention under a "
            f"treatment is {', '.join(f'{share(worst[name])} for `{name}`' for name in detectors)}."
        ),
        measured(
            found,
            f"{sizes(matching(rows, role='forget'))} prompts a set; retained under all treatments {retained(rows)}",
        ),
        table(
            ("done to the prompt", *(f"{OWN[forget].upper()}, {names}" for forget in own)),
            [(label, *(cell(forget, name) for forget in own)) for label, name in TREATMENTS],
        ),
        paragraph("All treatments together, against all that is retained under them:"),
        pools_table(rows, (ALL,)),
        refusals(found["refused"]),
    )
