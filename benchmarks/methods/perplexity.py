"""Perplexity of given answers, and how many times it is another model's on the same ones.

Suffixes: B examples of a batch, T tokens, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guards.calibration.tuning import Example
from guards.inside.transformers.capture import make_batch, plan_batches
from guards.inside.transformers.loading import LoadedModel

BATCH_TOKENS = 1024
"""Of a pass, whose logits are of the vocabulary's width each."""
RESAMPLES = 2000


class Said(NamedTuple):
    """How unlikely the looked-at tokens of one example were to the model, in nats, and how many they are."""

    nats: float
    tokens: int


def losses(loaded: LoadedModel, of: Sequence[Example]) -> Iterator[dict[int, Tensor]]:
    """By batch and an example's index the loss of every looked-at token, in nats, float32 [T].

    With gradient where the weights want one.
    """
    for group in plan_batches([len(each.ids) for each in of], BATCH_TOKENS):
        batch = make_batch([each.ids for each in of], group, loaded.device)
        logits_BTV = loaded.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False).logits
        found = {}
        for row, index in enumerate(group):
            ids, first = of[index]
            wanted_TV = logits_BTV[row, first - 1 : len(ids) - 1].float()
            found[index] = functional.cross_entropy(wanted_TV, batch.ids_BT[row, first : len(ids)], reduction="none")
        yield found


@torch.no_grad()
def said(loaded: LoadedModel, of: Sequence[Example]) -> list[Said]:
    """What the model as it is makes of each example, in their order."""
    found = {index: loss_T for batch in losses(loaded, of) for index, loss_T in batch.items()}
    return [Said(float(found[index].double().sum()), len(found[index])) for index in range(len(of))]


def ratio(here: Sequence[Sequence[float]], there: Sequence[Sequence[float]]) -> dict[str, Any]:
    """How many times the perplexity there is that here, on the same examples, with a 95 % interval.

    `here` and `there` are of `Said`. Examples are resampled in pairs (percentile bootstrap).
    """
    more = np.array([one[0] - other[0] for one, other in zip(here, there, strict=True)])
    tokens = np.array([each[1] for each in here])
    drawn = np.random.default_rng(0).integers(0, len(more), (RESAMPLES, len(more)))
    low, high = np.quantile(more[drawn].sum(axis=1) / tokens[drawn].sum(axis=1), (0.025, 0.975))
    return {
        "ratio": round(math.exp(more.sum() / tokens.sum()), 4),
        "low": round(math.exp(low), 4),
        "high": round(math.exp(high), 4),
        "texts": len(more),
    }
