"""Calibrates Key Space Detection: fits on one half of the forget set, chooses layer and tau on a quarter, reports on
the last quarter; retain prompts are halved between choosing and reporting.

Suffixes: L layers, C cubes (one per fitted frame), E examples.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guards.artifact import Rate
from guards.calibrate import Calibration, choose_canaries, make_record, progress_bar
from guards.calibrate_options import KSDOptions
from guards.capture import TokenIds, Tokens, stream
from guards.corpus import FORGET_DEAL, RETAIN_DEAL, Corpus, Share, common_prefix, encode_corpora, resolve_frames
from guards.data import Source
from guards.errors import CalibrationError
from guards.ksd import FEW_VECTORS, METHOD, MIN_VECTORS, Cube, KSDFitter, KSDGuard, Regime, cube_score
from guards.loading import LoadedModel
from guards.sites import Site
from guards.statistics import auroc, conformal_tau
from guards.thresholds import enough_for_cap, false_abstention_bound, hits, joint_scale, margin, rate_of
from guards.verdict import Scope

MIN_RECALL = 0.5
"""Below this a guard does not take a skill away; none is written."""
Advance = Callable[[int, str], None]


@dataclass(frozen=True)
class LayerResult:
    """How one layer's cube separates. `auroc` and `margin` on the threshold part chose the layer; the rest is reported."""

    layer: int
    auroc: float
    margin: float
    tau: float
    k: float
    floored: int
    vectors: int
    reported_auroc: float
    recall: Rate
    false_abstention: Rate


@dataclass(frozen=True)
class FrameResult:
    """One frame's cube and what the whole guard does to prompts in this frame, on the report part.

    `forget_E` and `retain_E` are the cube's own scores there; `sources` the false abstentions by retain source.
    """

    frame: str
    chosen: LayerResult
    tau: float
    layers: tuple[LayerResult, ...]
    recall: Rate
    false_abstention: Rate
    sources: dict[str, Rate]
    forget_E: Tensor
    retain_E: Tensor


@dataclass(frozen=True)
class KSDCalibration(Calibration):
    """A calibration with its figures by frame."""

    frames: tuple[FrameResult, ...] = ()


class _Scorer:
    """Scores of every cube on examples in one served frame: the smallest over an example's judged tokens."""

    def __init__(self, cubes: Sequence[Sequence[Cube]], examples: int, device: torch.device) -> None:
        self._cubes = [
            [(c, i, cube.mean_F.to(device), cube.std_F.to(device).reciprocal())
             for c, row in enumerate(cubes) for i, cube in enumerate(row) if cube.layer == layer]
            for layer in range(1 + max(cube.layer for row in cubes for cube in row))
        ]
        self._scores = torch.full((len(cubes), len(cubes[0]), examples), torch.inf, device=device)

    def __call__(self, layer: int, key_TF: Tensor, example_T: Tensor) -> None:
        for c, i, mean_F, inverse_F in self._cubes[layer]:
            score_T = cube_score(key_TF, mean_F, inverse_F)
            if not bool(torch.isfinite(score_T).all()):
                raise CalibrationError(f"layer {layer}: a score is not finite: the model overflows in this dtype")
            self._scores[c, i].scatter_reduce_(0, example_T, score_T, "amin")

    def scores(self) -> Tensor:
        """float32 [C, L, E] on the host."""
        return self._scores.cpu()
