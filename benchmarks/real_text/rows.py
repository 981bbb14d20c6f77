"""From scores to the table's rows. Suffixes: E examples. A ratio is score over tau: a hit is a ratio of at most 1."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.real_text.heldout import Predicted
from benchmarks.real_text.skills import MEASURED, Meaning, Skill, meaning
from guards.calibration.statistics import auroc
from guards.calibration.thresholds import rate_of

Row = dict[str, Any]
POOLED = "all others"
"""The test set that a row over all false abstentions names."""


def _row(skill: Skill, test: str, means: Meaning, ratio_E: Tensor, own_E: Tensor) -> Row:
    """What a guard does to one set: its share of hits with the exact interval, and its AUROC against the own set."""
    rate, other = rate_of(ratio_E <= 1), means is Meaning.OTHER
    return {
        "forget": skill.name,
        "test": test,
        "meaning": means.value,
        "recall": None if other else rate.rate,
        "false_abstention": rate.rate if other else None,
        "auroc": auroc(own_E, ratio_E) if other else None,
        "hits": rate.hits,
        "examples": rate.total,
        "low": rate.low,
        "high": rate.high,
    }


def detection_rows(skill: Skill, ratio_E: Mapping[str, Tensor]) -> list[Row]:
    """One row for each measured set, and one for all sets whose hits are false abstentions. `ratio_E`: by set."""
    meanings = {measured.name: meaning(skill, measured) for measured in MEASURED}
    (own,) = (name for name, means in meanings.items() if means is Meaning.OWN)
    others = [name for name, means in meanings.items() if means is Meaning.OTHER]
    rows = [
        _row(skill, name, means, ratio_E[name], ratio_E[own]) for name, means in meanings.items() if means is not None
    ]
    together_E = torch.cat([ratio_E[name] for name in others])
    return [*rows, _row(skill, POOLED, Meaning.OTHER, together_E, ratio_E[own])]


def heldout_rows(
    skill: Skill, unguarded: Mapping[str, Predicted], refused_D: Mapping[str, Tensor], vocabulary: int
) -> list[Row]:
    """By data set, what is left of the next-token accuracy and what becomes of the perplexity behind the guard.

    `relative_accuracy` is None where the model by itself gets no token right.
    """
    rows = []
    for name, before in unguarded.items():
        after = before.behind(refused_D[name], vocabulary)
        rows.append(
            {
                "forget": skill.name,
                "test": name,
                "documents": before.token_D.numel(),
                "refused": int(refused_D[name].sum()),
                "accuracy": after.accuracy,
                "relative_accuracy": after.accuracy / before.accuracy if before.accuracy else None,
                "perplexity": after.perplexity,
                "relative_perplexity": after.perplexity / before.perplexity,
            }
        )
    return rows
