"""Measures all detectors on a set of prompts in one pass.

Suffixes: E examples, T tokens, F feed-forward width (d_ff), K numbers kept of an example at a layer.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.detectors.base import Detector, KeyBatch, Verdicts
from benchmarks.prompts.sets import PromptSet
from guards.activations import Activations
from guards.capture import TokenIds, Tokens
from guards.errors import CalibrationError
from guards.sites import Site

Key = TypeVar("Key")


def judge(model: Activations, detectors: Mapping[Key, Detector], examples: Sequence[TokenIds]) -> dict[Key, Verdicts]:
    """Every detector's verdicts [E] on the examples, in their order.

    Raises CalibrationError when a detector leaves out an example or gives a score that is not finite.
    """
    kept: dict[Key, dict[int, Tensor]] = defaultdict(dict)

    def consume(layer: int, key_TF: Tensor, example_T: Tensor) -> None:
        keys = KeyBatch(layer, key_TF, example_T)
        for key, detector in detectors.items():
            if layer not in detector.layers:
                continue
            found_EK = detector.measure(keys)
            if layer not in kept[key]:
                kept[key][layer] = found_EK.new_full((len(examples), found_EK.shape[1]), torch.nan)
            kept[key][layer][keys.examples] = found_EK

    layers = sorted({layer for detector in detectors.values() for layer in detector.layers})
    model.stream(Site.KEY, layers, examples, consume, tokens=Tokens.ALL, batch_tokens=None)
    verdicts = {key: detector.decide(kept[key]) for key, detector in detectors.items()}
    for key, verdict in verdicts.items():
        if not bool(torch.isfinite(verdict.score_E).all()) or verdict.score_E.shape != (len(examples),):
            raise CalibrationError(f"{key}: a score is not finite: the model overflows on these prompts in this dtype")
    return verdicts


def encode(model: Activations, made: PromptSet) -> list[TokenIds]:
    """The set's prompts as a server takes them on /v1/completions; those beyond the context are left out."""
    limit = model.max_tokens
    encoded = [model.codec.encode_text(prompt) for prompt in made.prompts]
    return [ids for ids in encoded if limit is None or len(ids) <= limit]
