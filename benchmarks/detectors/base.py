"""What a detector under test is.

Suffixes: E examples of a batch, T their tokens, F feed-forward width (d_ff), K numbers kept of an example at a layer.

To add one: a function `calibrate(model, fitting)` that returns a `Detector`, and an entry in
`benchmarks.detectors.registry`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.detectors.plans import Fitting
from guards.activations import Activations


@dataclass(frozen=True)
class KeyBatch:
    """Key vectors of every token of some whole prompts at one layer, example after example.

    `example_T`: which prompt each token is of.
    """

    layer: int
    key_TF: Tensor
    example_T: Tensor

    @cached_property
    def _counts(self) -> tuple[Tensor, Tensor]:
        examples_E, counts_E = torch.unique_consecutive(self.example_T, return_counts=True)
        return examples_E, counts_E

    @property
    def examples(self) -> Tensor:
        """The prompts of the batch [E], in the order of the rows below."""
        return self._counts[0]

    @cached_property
    def last_keys(self) -> Tensor:
        """The last token's key of each prompt, float32 [E, F]."""
        return self.key_TF[self._counts[1].cumsum(0) - 1].float()

    @cached_property
    def mean_keys(self) -> Tensor:
        """The mean key over each prompt's tokens, float32 [E, F]."""
        counts_E = self._counts[1]
        row_T = torch.repeat_interleave(torch.arange(len(counts_E), device=counts_E.device), counts_E)
        sum_EF = torch.zeros((len(counts_E), self.key_TF.shape[1]), device=self.key_TF.device)
        return sum_EF.index_add_(0, row_T, self.key_TF.float()) / counts_E.unsqueeze(1)


@dataclass(frozen=True)
class Verdicts:
    """`fires_E`: bool; `score_E`: float, small inside the skill, for AUROC only."""

    fires_E: Tensor
    score_E: Tensor


class Detector(Protocol):
    """A fitted detector of one skill. Holds no state of a prompt."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose keys it reads."""
        ...

    def measure(self, keys: KeyBatch) -> Tensor:
        """What it keeps of each prompt at the batch's layer, [E, K]."""
        ...

    def decide(self, kept_by_layer: Mapping[int, Tensor]) -> Verdicts:
        """The verdicts on prompts of which `measure` kept these [E, K], by layer."""
        ...


class Calibrate(Protocol):
    """Fits a detector. Raises CalibrationError or DataError where the examples allow none."""

    def __call__(self, model: Activations, fitting: Fitting) -> Detector: ...
