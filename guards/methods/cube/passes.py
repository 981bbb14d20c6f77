"""The two passes of a cube's calibration: fit, then score held-out examples.

Suffixes: L layers, C cubes (one per fitted frame), E examples, T tokens, F feed-forward width (d_ff).

The forget set is dealt into fit (half), threshold (a quarter) and report (a quarter), the retain set, of which cubes
fit nothing, into threshold and report (halves); `corpus.Share` says what for. Memory grows with frames^2 * layers *
examples scalars, never with vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guards.calibration.activations import Pass, Tokens
from guards.calibration.corpus import SIDES, Share, Side
from guards.calibration.detector_job import DetectorJob
from guards.calibration.sides import Advance
from guards.core.verdict import Scope
from guards.errors import CalibrationError
from guards.methods.cube.guard import Cube, CubeFitter, Regime, cube_score
from guards.methods.cube.options import CubeOptions
from guards.model.sites import Site

Scores = Mapping[tuple[Side, Share, str], Tensor]
"""Per side, share and served frame: float32 [C, L, E], the smallest score over an example's judged tokens."""


CubeJob = DetectorJob[CubeOptions]
HELD_OUT = (Share.THRESHOLD, Share.REPORT)


@dataclass(frozen=True)
class Fit:
    """A fitted cube, from `vectors` key vectors, with `floored` of its deviations raised to the floor."""

    cube: Cube
    vectors: int
    floored: int


def judged_tokens(options: CubeOptions) -> Tokens:
    """The tokens whose smallest score is an example's.

    Its last one; or, where a guard of all tokens also judges what the model writes, all tokens of the text, which then
    stands for an answer of that length.
    """
    if Regime(options.regime) is Regime.LAST_TOKEN or options.scope is Scope.PROMPT:
        return Tokens.LAST
    return Tokens.ALL if options.scope is Scope.GENERATION else Tokens.ALL_AND_LAST


def fit_frame(job: CubeJob, frame: str, advance: Advance) -> tuple[Fit, ...]:
    """A cube per layer from the forget set's fit part, in one pass."""
    fitters = {layer: CubeFitter(job.model.identity.d_ff) for layer in job.layers}

    def consume(layer: int, key_TF: Tensor, _: Tensor) -> None:
        fitters[layer].update(key_TF)

    tokens = Tokens.LAST if Regime(job.options.regime) is Regime.LAST_TOKEN else Tokens.ALL_AND_LAST
    wanted = Pass(Site.KEY, job.layers, tokens, job.skips[frame], job.options.batch_tokens)
    examples = job.examples("forget", Share.FIT, frame)
    job.model.stream(wanted, examples, consume, lambda done: advance(done, "fit"))
    return tuple(Fit(fitter.finish(layer, frame), fitter.count, fitter.floored) for layer, fitter in fitters.items())


def score_all(job: CubeJob, fits: Sequence[Sequence[Fit]], advance: Advance) -> Scores:
    """Scores of every cube on every held-out example in every frame; one pass over each part."""
    scores: dict[tuple[Side, Share, str], Tensor] = {}
    device = job.model.device
    cubes = [
        (c, i, fit.cube.layer, fit.cube.mean_F.to(device), fit.cube.std_F.to(device).reciprocal())
        for c, row in enumerate(fits)
        for i, fit in enumerate(row)
    ]
    for frame in job.frames:
        for role in SIDES:
            for share in HELD_OUT:
                examples = job.examples(role, share, frame)
                scores_CLE = torch.full((len(fits), len(job.layers), len(examples)), torch.inf, device=device)

                def consume(layer: int, key_TF: Tensor, example_T: Tensor, into_CLE: Tensor = scores_CLE) -> None:
                    for c, i, at, mean_F, inverse_F in cubes:
                        if at == layer:
                            score_T = cube_score(key_TF, mean_F, inverse_F)
                            into_CLE[c, i].scatter_reduce_(0, example_T, score_T, "amin")

                wanted = Pass(
                    Site.KEY, job.layers, judged_tokens(job.options), job.skips[frame], job.options.batch_tokens
                )
                job.model.stream(wanted, examples, consume, lambda done: advance(done, "score"))
                if not bool(torch.isfinite(scores_CLE).all()):
                    raise CalibrationError("a score is not finite: the model overflows on these texts in this dtype")
                scores[role, share, frame] = scores_CLE.cpu()
    return scores
