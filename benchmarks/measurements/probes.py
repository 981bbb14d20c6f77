"""What probes separate by layer, site and aggregation, and whether their directions differ by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measurements.results import Results, Row, matching
from benchmarks.measurements.text import between, measured, paragraph, section, share, table


def _best(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: row["log_auroc"])


def _cell(rows: Sequence[Row]) -> str:
    best = _best(rows)
    return f"{share(best['log_auroc'])} {between(best['interval'])}, layer {best['layer']}"


def _verdict(directions: Mapping[str, Any]) -> str:
    """What the cosines say of one aggregation."""
    near, far, chance = (directions[name] for name in ("neighbours", "far_apart", "halves"))
    return (
        f"the cosine of two neighbouring layers' directions is {share(near, 2)} on average, of two that are half of "
        f"the model apart {share(far, 2)}, and of one layer's from two halves of the texts {share(chance, 2)}"
    )


def probes_section(results: Results, model: str) -> str:
    """One model's; a row for each site and aggregation, a column for each third of its depth."""
    found = results.read(f"probes.{model}")
    rows: list[Row] = found["rows"]
    thirds = list(dict.fromkeys(row["third"] for row in rows))
    lines = [
        (
            f"{site}, {aggregation}",
            *(_cell(matching(own, third=third)) for third in thirds),
            share(_best(own)["auroc"], 4),
        )
        for site in dict.fromkeys(row["site"] for row in rows)
        for aggregation in dict.fromkeys(row["aggregation"] for row in rows)
        if (own := matching(rows, site=site, aggregation=aggregation))
    ]
    directions, chance = found["directions"], found["directions"]["last"]
    differ = chance["far_apart"] < chance["halves"] / 2
    low, high = found["rates"]
    texts = found["forget_texts"], found["retain_texts"]
    return section(
        f"{model}: probes by layer",
        paragraph(
            "A probe is a logistic regression at one layer, here of GSM8K against code, encyclopaedic and exam text, "
            "and questions in seven languages. The figure is log-AUROC on texts that were not fitted, the area under "
            f"recall over the logarithm of the false-positive rate from {low:.3g} to {high:.3g}, with intervals of "
            "95 % over resampled texts: of each third of the model the best layer, which flatters by the choice. "
            "`last` scores a text by its last token, `spans` by the window of it that looks most like the skill. The "
            "last column is the AUROC of the best of all layers."
        ),
        measured(
            found,
            f"{texts[0]['fitted']} and {texts[1]['fitted']} texts fitted, {texts[0]['measured']} and "
            f"{texts[1]['measured']} measured, of the skill and others",
        ),
        table(("site, aggregation", *thirds, "AUROC"), lines),
        paragraph(
            f"Whether directions differ by layer, as the paper on probes says: in the residual stream, at the last "
            f"token, {_verdict(directions['last'])}; over windows, {_verdict(directions['spans'])}. So they "
            f"{'do differ' if differ else 'differ no more than those of one layer that so few texts give'}: what one "
            f"depth says is {'not' if differ else 'much'} what another does."
        ),
        f"![log-AUROC by layer, cosines and weights](../benchmarks/results/probes.{model}.png)",
    )
