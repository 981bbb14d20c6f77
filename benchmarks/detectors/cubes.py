"""Cubes on the last prompt token: the paper's, and Key Space Detection as `guards.calibrate_ksd` fits it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.detectors.base import KeyBatch, Verdicts
from benchmarks.detectors.plans import Fitting
from benchmarks.prompts.sets import PromptSet
from guards.activations import Activations
from guards.calibrate_ksd import calibrate_ksd
from guards.calibrate_options import KSDOptions
from guards.capture import Consumer, TokenIds, Tokens
from guards.data import Source
from guards.ksd import Cube, KSDFitter, KSDGuard, cube_score
from guards.sites import Site
from guards.statistics import conformal_tau

RECALL = 0.95


@dataclass(frozen=True)
class CubeDetector:
    """Fires when any cube holds the last prompt token's key, as a server's guard does before it writes."""

    cubes: tuple[Cube, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with a cube."""
        return tuple(sorted({cube.layer for cube in self.cubes}))

    def measure(self, keys: KeyBatch) -> Tensor:
        """Scores over tau of the layer's cubes, [E, K]."""
        scores = [
            cube_score(keys.last_keys, cube.mean_F, cube.std_F.reciprocal()) / cube.tau
            for cube in self.cubes
            if cube.layer == keys.layer
        ]
        return torch.stack(scores, dim=1)

    def decide(self, kept_by_layer: Mapping[int, Tensor]) -> Verdicts:
        """The smallest ratio decides."""
        score_E = torch.cat(list(kept_by_layer.values()), dim=1).amin(dim=1)
        return Verdicts(score_E <= 1, score_E)


def _sources(sets: Sequence[PromptSet]) -> list[Source]:
    """Each material's texts once."""
    return list({made.material.name: made.source for made in sets}.values())


def ksd(model: Activations, fitting: Fitting) -> CubeDetector:
    """Key Space Detection with default options: a cube per format at the layer that separates best, recall under a cap.

    Raises CalibrationError where the cap leaves too little recall, ValueError for a format that is no frame.
    """
    frames = tuple(form.frame for form in fitting.plan.formats if form.frame is not None)
    if len(frames) != len(fitting.plan.formats):
        raise ValueError(f"plan {fitting.plan.name}: got a format that is no frame; calibrate_ksd takes frames only")
    options = KSDOptions(frames=frames, recall=RECALL)
    guard = calibrate_ksd(model, _sources(fitting.forget), _sources(fitting.retain), options).guard
    assert isinstance(guard, KSDGuard)
    return CubeDetector(guard.cubes)


def paper(model: Activations, fitting: Fitting) -> CubeDetector:
    """The paper's cube: last layer, fitted on every second prompt, tau for RECALL on the others and no cap."""
    layer = model.identity.layers - 1
    (made,) = fitting.forget
    encoded = [model.codec.encode_text(prompt) for prompt in made.prompts]
    fitter = KSDFitter(model.identity.d_ff)

    def stream(examples: Sequence[TokenIds], consume: Consumer) -> None:
        model.stream(Site.KEY, (layer,), examples, consume, tokens=Tokens.LAST, batch_tokens=None)

    stream(encoded[::2], lambda _, key_TF, __: fitter.update(key_TF))
    cube = fitter.finish(layer, made.format.name)
    scores = [torch.empty(0)]
    stream(
        encoded[1::2],
        lambda _, key_TF, __: scores.append(cube_score(key_TF, cube.mean_F, cube.std_F.reciprocal())),
    )
    return CubeDetector((replace(cube, tau=conformal_tau(torch.cat(scores), RECALL)),))
