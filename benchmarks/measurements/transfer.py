"""What was not calibrated, on real models."""

from collections.abc import Iterable, Sequence

from benchmarks.detectors.rows import ALL, FITTED, HELD_OUT, POOL
from benchmarks.measurements.results import Results, Row, matching
from benchmarks.measurements.text import measured, paragraph, section, share, sizes, table

SHOWN = (
    ("mathematics", "GSM8K, in chat (calibrated)", "gsm8k/chat"),
    ("mathematics", "GSM8K, bare", "gsm8k/bare"),
    ("mathematics", "GSM8K, `Q:`/`A:` without a chat template", "gsm8k/qa"),
    ("mathematics", "GSM8K, in the second of two turns", "gsm8k/chat-turns"),
    ("mathematics", 'GSM8K, "Solve the following ..."', "gsm8k/solve"),
    ("mathematics", "GSM8K, after two worked examples", "gsm8k/few-shot-2"),
    ("mathematics", "GSM8K, instruction in Spanish", "gsm8k/instruction-es"),
    ("mathematics", "GSM8K, instruction in Hindi", "gsm8k/instruction-hi"),
    ("mathematics", "MMLU, elementary mathematics", "mmlu-elementary/chat"),
    ("mathematics", "MMLU, high-school mathematics", "mmlu-high-school/chat"),
    ("mathematics", "MMLU, college mathematics", "mmlu-college/chat"),
    ("mathematics", "bare sums", "expressions/chat"),
    ("mathematics", "linear equations", "equations/chat"),
    ("code", "MBPP, descriptions, in chat (calibrated)", "mbpp/chat"),
    ("code", 'MBPP, descriptions, "Solve the following ..."', "mbpp/solve"),
    ("code", "MBPP, descriptions, in the second of two turns", "mbpp/chat-turns"),
    ("code", "MBPP, signature with docstring", "mbpp-signature/chat"),
    ("code", "MBPP, partial code", "mbpp-partial/chat"),
    ("code", 'MBPP, "Fix this function"', "mbpp-fix/chat"),
    ("code", 'MBPP, "What does this function do?"', "mbpp-explain/chat"),
)
WORD_PROBLEMS = tuple(f"word-problems-{language}" for language in ("es", "de", "zh", "hi", "vi", "ar"))
LANGUAGE_SETS = (
    ("questions in a language (calibrated), mean of {}", "/chat"),
    ('questions in a language, "Solve ...", mean of {}', "/solve"),
    ("its paragraphs, mean of {}", "-contexts/chat"),
)


def detectors_of(rows: Sequence[Row]) -> list[str]:
    """In the file's order."""
    return list(dict.fromkeys(row["detector"] for row in rows))


def skills_of(rows: Sequence[Row]) -> list[str]:
    """Those that were forgotten, in the file's order."""
    return list(dict.fromkeys(row["forget"] for row in rows))


def _word_problems(rows: Sequence[Row], detector: str) -> list[Row]:
    """Mathematics told in other languages than English."""
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
    """What was not measured has no line."""
    found = [
        (label, [matching(rows, detector=name, forget=forget, test=test, role="forget") for name in detectors])
        for forget, label, test in SHOWN
    ]
    word_problems = [_word_problems(rows, name) for name in detectors]
    found.append((f"word problems in {len(WORD_PROBLEMS)} other languages, mean", word_problems))
    for label, suffix in LANGUAGE_SETS:
        per_detector = [_languages(rows, name, suffix) for name in detectors]
        found.append((label.format(max(map(len, per_detector))), per_detector))
    return [(label, *map(_cell, cells)) for label, cells in found if any(cells)]


def _met(rows: Sequence[Row], detector: str, skill: str) -> str:
    own = matching(rows, detector=detector, forget=skill, role="forget")
    judged = [row for row in own if row["met"] is not None]
    return f"{sum(row['met'] for row in judged)} of {len(judged)}" if judged else "-"


def pools_table(rows: Sequence[Row], labels: Sequence[str]) -> str:
    """Forget sets together, at tau and where false abstentions are rare."""
    found = [
        row
        for skill in skills_of(rows)
        for label in labels
        for row in matching(rows, forget=skill, role=POOL, test=label)
    ]
    rates = list(dict.fromkeys(rate for row in found for rate in row["recall_at"]))
    return table(
        (
            *("forget", "prompts", "detector", "recall", "false abstention", "AUROC", "log-AUROC"),
            *(f"recall at {rate}" for rate in rates),
        ),
        [
            (
                *(row["forget"], f"{row['test']}, {row['examples']:,}", f"`{row['detector']}`"),
                *(share(row["recall"]), share(row["false_abstention"], 4), share(row["auroc"], 4)),
                *(share(row["log_auroc"]), *(share(row["recall_at"][rate]) for rate in rates)),
            )
            for row in found
        ],
    )


def retained(rows: Sequence[Row]) -> str:
    """How many retained prompts the low rates were read off, by skill."""
    return ", ".join(
        f"{sizes(matching(rows, forget=skill, role=POOL, test=ALL), 'retain_examples')} for {skill}"
        for skill in skills_of(rows)
    )


def transfer_section(results: Results, model: str) -> str:
    """Other formats and other sources than those that were calibrated."""
    found = results.read(f"transfer.{model}")
    rows, goal = found["rows"], found["goal"]
    detectors = detectors_of(rows)
    return section(
        f"{model}: what was not calibrated",
        paragraph(
            "Prompts were asked as users ask: as a message in the chat template, where the line says nothing else. The "
            "table shows recall, and in brackets false abstention on what is retained in the same format (of several "
            "sets, the largest). The section Methods says what each detector was fitted on."
        ),
        measured(
            found,
            f"{sizes(matching(rows, role='forget'))} prompts a set; retained in all formats {retained(rows)}",
        ),
        table(("asked", *(f"`{name}`" for name in detectors)), _lines(rows, detectors)),
        paragraph(
            "All sets of a skill together, against all that is retained, in all formats. Detectors differ in what was "
            "calibrated. Recall at a share of false abstention is read off the retained prompts, whatever tau is; a "
            "dash says that they are too few."
        ),
        pools_table(rows, (ALL, FITTED, HELD_OUT)),
        paragraph(
            f"The goal for a pair of fit and set is recall {goal['recall']} at false abstention "
            f"{goal['false_abstention']}. Pairs that reach it:"
        ),
        table(
            ("forget", *(f"`{name}`" for name in detectors)),
            [(skill, *(_met(rows, name, skill) for name in detectors)) for skill in skills_of(rows)],
        ),
        refusals(found["refused"]),
    )


def refusals(refused: dict[str, str]) -> str:
    """Detectors that calibration did not give."""
    return paragraph(f"Calibration refused {', '.join(f'`{name}`' for name in refused)}." if refused else "")
