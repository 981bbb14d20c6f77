"""From scores to the table's rows. Suffixes: E examples. A ratio is score over tau: a hit is a ratio of at most 1."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.real_text.heldout import Predicted
from benchmarks.real_text.skills import MEASURED, Meaning, Skill, meaning
from guards.activations import Activations
from guards.capture import TokenIds, Tokens
from guards.errors import CalibrationError
from guards.ksd import KSDGuard
from guards.ksd_artifact import BoundKSD
from guards.sites import Site
from guards.statistics import auroc
from guards.thresholds import rate_of

Row = dict[str, Any]
POOLED = "all others"
"""The test set that a row over all false abstentions names."""


@torch.no_grad()
def ratios(model: Activations, guards: Mapping[str, KSDGuard], examples: Sequence[TokenIds]) -> dict[str, Tensor]:
    """The smallest score over tau [E] of every guard's parts at the last prompt token, all guards in one pass.

    Raises CalibrationError on a score that is not finite.
    """
    bound = {name: BoundKSD(guard, model.device) for name, guard in guards.items()}
    found = {name: torch.full((len(examples),), torch.inf, device=model.device) for name in guards}
    banks = {(name, layer): each.at(layer) for name, each in bound.items() for layer in each.layers}

    def consume(layer: int, key_TF: Tensor, example_T: Tensor) -> None:
        for name, each in bound.items():
            if layer in each.layers:
                assert each.taus is not None
                parts, bank = banks[name, layer]
                ratio_T = (bank(key_TF) / each.taus[list(parts)]).amin(dim=-1)
                found[name].scatter_reduce_(0, example_T, ratio_T, "amin")

    layers = sorted({layer for each in bound.values() for layer in each.layers})
    model.stream(Site.KEY, layers, examples, consume, tokens=Tokens.LAST, batch_tokens=None)
    for name, ratio_E in found.items():
        if not bool(torch.isfinite(ratio_E).all()):
            raise CalibrationError(f"{name}: a score is not finite: the model overflows on these texts in this dtype")
    return {name: ratio_E.cpu() for name, ratio_E in found.items()}


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
