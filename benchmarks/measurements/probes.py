"""What probes separate by layer, site and aggregation, and whether their directions differ by layer."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from benchmarks.measurements.results import Results, Row, matching
from benchmarks.measurements.text import between, measured, paragraph, section, share, table


def _best(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: (row["log_auroc"], row["auroc"]))


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
    kinds = [dict.fromkeys(row[name] for row in rows) for name in ("measured", "site", "aggregation")]
    lines = [
        (of, site, aggregation, *(_cell(matching(own, third=third)) for third in thirds), share(_best(own)["auroc"], 4))
        for of, site, aggregation in product(*kinds)
        if (own := matching(rows, measured=of, site=site, aggregation=aggregation))
    ]
    directions, chance = found["directions"], found["directions"]["last"]
    differ = chance["far_apart"] < chance["halves"] / 2
    low, high = found["rates"]
    texts = found["texts"]
    return section(
        f"{model}: probes by layer",
        paragraph(
            "A probe is a logistic regression at one layer, here of GSM8K against code, encyclopaedic and exam text, "
            "and questions in seven languages. Measured are texts of these that were not fitted, and MMLU's "
            "mathematics, of which nothing was. The figure is log-AUROC, the area under recall over the logarithm of "
            f"the false-positive rate from {low:.3g} to {high:.3g}, with intervals of 95 % over resampled texts: of "
            "each third of the model the best layer, which flatters by the choice. `last` scores a text by its last "
            "token, `spans` by the window of it that looks most like the skill. The last column is the AUROC of the "
            "layer of the largest figure."
        ),
        measured(
            found,
            f"{texts['gsm8k_fitted']} texts of GSM8K and {texts['others_fitted']} others fitted, "
            f"{texts['gsm8k_measured']} of GSM8K, {texts['mmlu_measured']} of MMLU's mathematics and "
            f"{texts['others_measured']} others measured",
        ),
        table(("measured", "site", "tokens", *thirds, "AUROC"), lines),
        paragraph(
            f"Whether directions differ by layer, as the paper on probes says: in the residual stream, at the last "
            f"token, {_verdict(directions['last'])}; over windows, {_verdict(directions['spans'])}. So they "
            f"{'do differ by depth' if differ else 'differ no more than those of one layer that so few texts give'}."
        ),
        f"![log-AUROC by layer, cosines and weights](../benchmarks/results/probes.{model}.png)",
    )
