"""What was not calibrated."""

from collections.abc import Iterable, Sequence

from benchmarks.measurements.results import Results, Row, matching
from benchmarks.measurements.text import measured, paragraph, section, share, sizes, table

SHOWN = (
    ("mathematics", "GSM8K, `Q:`/`A:` (calibrated)", "gsm8k/qa"),
    ("mathematics", "GSM8K, in the second of two turns", "gsm8k/chat-turns"),
    ("mathematics", 'GSM8K, "Solve the following ..."', "gsm8k/solve"),
    ("mathematics", "GSM8K, after two worked examples", "gsm8k/few-shot-2"),
    ("mathematics", "GSM8K, instruction in Spanish", "gsm8k/instruction-es"),
    ("mathematics", "GSM8K, instruction in Hindi", "gsm8k/instruction-hi"),
    ("mathematics", "MMLU, elementary mathematics", "mmlu-elementary/qa"),
    ("mathematics", "MMLU, high-school mathematics", "mmlu-high-school/qa"),
    ("mathematics", "linear equations", "equations/qa"),
    ("code", "MBPP, descriptions, `Q:`/`A:` (calibrated)", "mbpp/qa"),
    ("code", 'MBPP, descriptions, "Solve the following ..."', "mbpp/solve"),
    ("code", "MBPP, descriptions, in the second of two turns", "mbpp/chat-turns"),
    ("code", "MBPP, signature with docstring", "mbpp-signature/qa"),
    ("code", "MBPP, partial code", "mbpp-partial/qa"),
    ("code", 'MBPP, "Fix this function"', "mbpp-fix/qa"),
)
WORD_PROBLEMS = tuple(f"word-problems-{language}" for language in ("es", "de", "zh", "hi", "vi", "ar"))
LANGUAGE_SETS = (
    ("questions in a language (calibrated), mean of {}", "/qa"),
    ('questions in a language, "Solve ...", mean of {}', "/solve"),
    ("its paragraphs, bare, mean of {}", "-contexts/bare"),
)


def word_problems(rows: Sequence[Row], detector: str) -> list[Row]:
    """Mathematics told in other languages than English, in every format."""
    own = matching(rows, detector=detector, forget="mathematics", role="forget")
    return [row for row in own if row["test"].split("/")[0] in WORD_PROBLEMS]


def _languages(rows: Sequence[Row], detector: str, suffix: str) -> list[Row]:
    return [
        row
        for row in matching(rows, detector=detector, role="forget")
        if row["forget"].startswith("language-")
        and row["test"] == row["forget"].replace("language-", "xquad-") + suffix
    ]


def _cell(found: Sequence[Row]) -> str:
    """The mean recall of sets, and the largest false abstention beside it."""
    if not found:
        return "-"
    recall = sum(row["recall"] for row in found) / len(found)
    wrong = max((row["false_abstention"] for row in found if row["false_abstention"] is not None), default=None)
    return f"{share(recall, 2)} ({share(wrong)})"


def _lines(rows: Sequence[Row], detectors: Sequence[str]) -> Iterable[Sequence[str]]:
    for forget, label, test in SHOWN:
        cells = (_cell(matching(rows, detector=name, forget=forget, test=test, role="forget")) for name in detectors)
        yield (label, *cells)
        if test == "equations/qa":
            cells = (_cell(word_problems(rows, name)) for name in detectors)
            yield (f"word problems in {len(WORD_PROBLEMS)} other languages, mean of all formats", *cells)
    for label, suffix in LANGUAGE_SETS:
        per_detector = [_languages(rows, name, suffix) for name in detectors]
        yield (label.format(max(map(len, per_detector))), *map(_cell, per_detector))


def _met(rows: Sequence[Row], detector: str, skill: str) -> str:
    own = [
        row
        for row in matching(rows, detector=detector, role="forget")
        if row["forget"].startswith(skill) and row["met"] is not None
    ]
    return f"{sum(row['met'] for row in own)} of {len(own)}" if own else "-"


def transfer_section(results: Results) -> str:
    """Other formats and other sources than those that were calibrated."""
    found = results.read("transfer")
    rows, goal = found["rows"], found["goal"]
    detectors = list(dict.fromkeys(row["detector"] for row in rows))
    told = max(row["recall"] for name in detectors for row in word_problems(rows, name))
    return section(
        "Real text: what was not calibrated",
        paragraph(
            "The same model. The table shows recall, and in brackets false abstention on what is retained in the same "
            "format (of several sets, the largest). `paper` is a cube fitted in one frame; `cube` holds a cube for "
            "each of three frames (`Q:`/`A:`, chat, bare). `pooled` is that variant in the same three frames. "
            "These were fitted on the training texts of GSM8K, of MBPP or of one language. `pooled-sources` was fitted "
            "on further sources: MMLU's elementary questions and bare sums for mathematics, signatures and partial "
            "functions for code."
        ),
        measured(
            found,
            f"{sizes(matching(rows, role='forget'))} prompts a set, "
            f"{sizes([row for row in rows if 'retain_examples' in row], 'retain_examples')} retained in its format",
        ),
        table(("asked", *(f"`{name}`" for name in detectors)), _lines(rows, detectors)),
        paragraph(
            f"The goal for a pair of fit and set is recall {goal['recall']} at false abstention "
            f"{goal['false_abstention']}. Pairs that reach it:"
        ),
        table(
            ("forget", *(f"`{name}`" for name in detectors)),
            [
                (label, *(_met(rows, name, skill) for name in detectors))
                for label, skill in (("mathematics", "mathematics"), ("code", "code"), ("languages", "language-"))
            ],
        ),
        paragraph(
            "A mean is bound to its frame less than a cube is. **Mathematics stays the kind of text that it was fitted "
            f"on:** of word problems told in other languages no detector catches more than {share(told, 2)}. One "
            "discriminant over unlike sources catches less of each. Give `--forget` what you want forgotten in all of "
            "its forms."
        ),
    )
