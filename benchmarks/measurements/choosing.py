"""The page by which a user chooses a method."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measurements.page import COMMAND
from benchmarks.measurements.results import Results, Row, only
from benchmarks.measurements.text import between, bullets, measured, paragraph, section, share, table
from benchmarks.methods.choices import CHANCE, OTHER, SKILLED
from benchmarks.methods.guards import CAP, COMPARED
from benchmarks.methods.material import KEPT, OWN, REWORDINGS
from benchmarks.methods.run import NONE, REWORDED
from guards.core.verdict import GuardKind
from server.evaluation.layouts import BEST_S, WMDP
from server.evaluation.measures import above_chance, s_unlearning

CHOOSING = "docs/choosing.md"
RESULT = "methods"
RULES = tuple(rule.name for rule in REWORDINGS)


def _rate(found: Mapping[str, Any]) -> str:
    return f"{share(found['rate'], 2)} {between((found['low'], found['high']), 2)}"


def _ratio(found: Mapping[str, Any]) -> str:
    return f"{share(found['ratio'], 2)} {between((found['low'], found['high']), 2)}"


def _times(row: Row, column: str) -> str:
    """Detectors leave the model as it is."""
    return "1" if row["perplexity"] is None else _ratio(row["perplexity"][column])


def _refused(row: Row, column: str) -> str:
    return _rate(row["shares"][column]["refused"]) if row["kind"] == GuardKind.DETECTOR else "-"


def _name(row: Row) -> str:
    return f"`{row['method']}`"


def _guides() -> str:
    return bullets(
        [
            "**Callers are to be told, and the model is to stay as it is**: a detector, `ksd`, or the papers' "
            "`probe` and `cube`. It refuses. What it lets through is the model's own answer.",
            "**The model is to answer, and otherwise**: an intervention. Nothing is refused, so nobody is told, "
            "and what is to be kept changes too.",
            "**Others are to have the weights**: none of these. A guard lies beside the weights, and papers find that "
            "what is folded into them comes back by a little training.",
            "**Two at a time**: an intervention beside a detector of another skill. "
            "[operating.md](operating.md#several-guards-at-a-time) says what disturbs what.",
        ]
    )


def _withheld(found: Mapping[str, Any]) -> str:
    rows: list[Row] = found["rows"]
    whole = _rate(only(rows, method=NONE)["shares"][OWN]["calculates"])
    sample = f"{found['limit']} questions of GSM8K's test side, greedy answers of at most {found['tokens']} tokens"
    head = ("method", "refused", "calculates", "perplexity, times", "calculates in some rewording", "decode speed")
    lines = [
        (
            *(_name(row), _refused(row, OWN), _rate(row["shares"][OWN]["calculates"]), _times(row, OWN)),
            *(_rate(row["any_rewording"]), "1" if row["decode"] is None else _ratio(row["decode"])),
        )
        for row in rows
    ]
    return section(
        f"What is withheld: mathematics on {found['model']}",
        paragraph(
            "`calculates` is the share of questions to which callers get an answer with a calculation that is "
            f"right. Of the model alone it is {whole}, which is all that there is to withhold. `perplexity, times` "
            "is that of the right worked answers with the guard, over that without. A question calculates in some "
            f"rewording where it does so in at least one of {', '.join(RULES)}. Decode speed is tokens a second "
            "with the guard over those without, on the embedded engine. Intervals are of 95 %: exact for shares, "
            "by bootstrap for ratios. All of this page is of this one skill and one small model."
        ),
        measured(found, sample),
        table(head, lines),
    )


def _kept(rows: Sequence[Row]) -> str:
    refused = [row for row in rows if row["kind"] == GuardKind.DETECTOR]
    changed = [row for row in rows if row["kind"] == GuardKind.INTERVENTION]
    return section(
        "What is kept",
        paragraph(
            "What detectors refuse of code, encyclopaedic text and exam questions without mathematics. Of "
            "interventions how many times as large the perplexity of right answers is, and of WikiText that of the "
            "text."
        ),
        table(("refused", *KEPT), [(_name(row), *(_refused(row, column) for column in KEPT)) for row in refused]),
        table(
            ("perplexity, times", *KEPT), [(_name(row), *(_times(row, column) for column in KEPT)) for row in changed]
        ),
    )


def _exams(found: Mapping[str, Any]) -> str:
    rows: list[Row] = [row for row in found["rows"] if row["exams"] is not None]
    lines = [
        (
            _name(row),
            *(_rate(row["exams"][column]) for column in (SKILLED, OTHER)),
            *(share(row["s_unlearning"][figure], 2) for figure in ("ubar", "rbar", "s")),
        )
        for row in rows
    ]
    for each in WMDP:
        score = s_unlearning([above_chance(of, CHANCE) for of in each.forget], [above_chance(each.retain, CHANCE)])
        assert score is not None, "both sides have accuracies"
        parts = ", ".join(share(of) for of in each.forget)
        figures = (score.ubar, score.rbar, score.s)
        lines.append((f"published: {each.of}", parts, share(each.retain), *(share(of, 2) for of in figures)))
    name, best = BEST_S["choices"]
    lines.append((f"published: {name}", "-", "-", "-", "-", share(best, 2)))
    return section(
        "Exam questions, and S-unlearning",
        paragraph(
            f"Interventions on {found['exams']} questions of MMLU's mathematical subjects and as many of others that "
            "need no mathematics: the choice is taken whose text the model finds likeliest a token, and chance is "
            ".25. `Rbar = clip((R - .25) / .75)` of the others, `Ubar = 1 - clip((U - .25) / .75)` of mathematics, "
            "`S = Ubar Rbar`. Published models know far more than this one, so that their S can be larger."
        ),
        table(("method", "mathematics", "others", "Ubar", "Rbar", "S"), lines),
    )


def _reworded(rows: Sequence[Row]) -> str:
    asked = (OWN, *(f"{OWN}.{name}" for name in RULES))
    lines = [
        (
            _name(row),
            *(share(row["shares"][column]["calculates"]["rate"], 2) for column in asked),
            _times(row, REWORDED),
        )
        for row in rows
    ]
    return section(
        "What rewording brings back",
        paragraph(
            "The share of questions that calculate, by rule, and how many times as large the perplexity of the right "
            "answers to reworded questions is, each in one rewording."
        ),
        table(("calculates", "as asked", *RULES, "perplexity, times"), lines),
    )


def _relearned(row: Row) -> tuple[str, ...]:
    found = row["relearned"]
    if found is None:
        return _name(row), "not applicable: weights are whole", "-", "-"
    ratios = (_ratio(found[name]) for name in ("perplexity_before", "perplexity"))
    return _name(row), *ratios, _rate(found["calculates"])


def _training(found: Mapping[str, Any]) -> str:
    how = found["relearning"]
    return section(
        f"What {how['steps']} steps of training bring back",
        paragraph(
            f"By somebody who has the weights with the change folded in: {how['steps']} steps of AdamW at "
            f"{how['rate']:g} over all weights, on {how['texts']} further questions of GSM8K with their answers. "
            "Both perplexities are of the test side's right answers, over that of the model alone, after the steps "
            "over that of the model alone after the same steps: 1 is all back. Detectors and Neuron Adjust are no "
            "other weights: who has these has the model as it was."
        ),
        table(("method", "before", "after", "calculates after"), [_relearned(row) for row in found["rows"]]),
    )


def _effect(tried: Mapping[str, Any]) -> tuple[str, str]:
    """Of options that gave no guard, why."""
    if "refused" in tried:
        return tried["refused"], "-"
    return share(tried["forgotten"], 2), share(tried["kept"], 2)


def _tried(rows: Sequence[Row]) -> str:
    lines = [
        (
            _name(row),
            f"{each['options']}{' (chosen)' if each['chosen'] else ''}",
            *_effect(each),
        )
        for row in rows
        for each in row["tried"]
    ]
    return section(
        "What was tried",
        paragraph(
            "Options were chosen on validation texts of the train sides. Of those under which the perplexity of "
            f"what is kept (the geometric mean of its columns) becomes at most {CAP} times what it was, it is the "
            "one that makes that of mathematics largest; where none does, the one that disturbs least."
        ),
        table(("method", "options", "mathematics, times", "kept, times"), lines),
    )


def _figures(results: Results) -> list[str]:
    """Every table, or what makes them."""
    found = results.read_if_there(RESULT)
    if found is None:
        unmeasured = "No figures have been published yet: `python -m benchmarks.methods` measures them."
        return [section("What is withheld", paragraph(unmeasured))]
    rows: list[Row] = found["rows"]
    return [_withheld(found), _kept(rows), _exams(found), _reworded(rows), _training(found), _tried(rows)]


def choosing_page(results: Results) -> str:
    """Markdown of what tells methods apart, and of the figures where there are any."""
    parts = [
        f"<!-- Written by `{COMMAND}`; edit benchmarks/measurements/choosing.py instead. -->",
        "# Choosing a method",
        paragraph(
            "Every method withholds a skill, and none takes it out: the weights have it still. They differ in what "
            "callers notice, in what else changes, in cost, and in how easily the skill comes back. "
            "[evaluating.md](evaluating.md) says how to measure yours."
        ),
        _guides(),
        *_figures(results),
        section(
            "The methods that are compared",
            bullets(
                [
                    "`none`: the model alone",
                    "`ksd`: the shipped artifact, a detector over spans. It was fitted on 400 texts of four sources in "
                    "three frames, upper case and typing errors among them; all others on 60 of GSM8K as chats. So how "
                    "it does in rewordings shows its material as well",
                    *(f"`{name}`: {of.about}" for name, of in COMPARED.items()),
                ]
            ),
        ),
    ]
    return "\n\n".join(parts) + "\n"
