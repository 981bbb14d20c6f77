"""The two passes of a Key Space Detection calibration: fit cubes, then score held-out examples.

Suffixes: L layers, C cubes (one per fitted frame), E examples, T tokens, F feed-forward width (d_ff).

The forget set is dealt into fit (half), threshold (a quarter) and report (a quarter), the retain set, of which cubes
fit nothing, into threshold and report (halves); `guards.corpus.Share` says what for. Memory grows with frames^2 *
layers * examples scalars, never with vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from guards.activations import Activations
from guards.artifact import Rate
from guards.calibrate import Advance, left_out_warnings
from guards.calibrate_options import DetectorOptions, KSDOptions
from guards.capture import TokenIds, Tokens
from guards.corpus import FORGET_DEAL, RETAIN_DEAL, Corpus, Role, Share, encode_corpora, frame_tokens, resolve_frames
from guards.data import Source
from guards.errors import CalibrationError
from guards.ksd import FEW_VECTORS, Cube, KSDFitter, Regime, cube_score
from guards.sites import Site
from guards.thresholds import enough_for_cap
from guards.verdict import Scope

Scores = Mapping[tuple[Role, Share, str], Tensor]
"""Per side, share and served frame: float32 [C, L, E], the smallest score over an example's judged tokens."""
HELD_OUT = (Share.THRESHOLD, Share.REPORT)


@dataclass(frozen=True)
class Job:
    """The checked inputs of the passes. `skips`: each frame's own leading and trailing tokens."""

    model: Activations
    options: DetectorOptions
    frames: tuple[str, ...]
    layers: tuple[int, ...]
    corpora: Mapping[Role, Corpus]
    parts: Mapping[Role, Mapping[Share, list[int]]]
    skips: Mapping[str, tuple[int, int]]

    @property
    def regime(self) -> Regime:
        """Which tokens of an example a cube is fitted on."""
        assert isinstance(self.options, KSDOptions)
        return Regime(self.options.regime)

    @property
    def judged(self) -> Tokens:
        """The tokens whose smallest score is an example's.

        Its last one; or, where a guard of all tokens also judges what the model writes, all tokens of the text, which
        then stands for an answer of that length.
        """
        if self.regime is Regime.LAST_TOKEN or self.options.scope is Scope.PROMPT:
            return Tokens.LAST
        return Tokens.ALL if self.options.scope is Scope.GENERATION else Tokens.ALL_AND_LAST

    def examples(self, role: Role, share: Share, frame: str) -> list[TokenIds]:
        """One part's token ids in a frame."""
        encoded = self.corpora[role].encoded[frame]
        return [encoded[example] for example in self.parts[role][share]]

    @property
    def tokens(self) -> int:
        """Tokens that both passes run over: every example once per frame."""
        return sum(len(ids) for corpus in self.corpora.values() for kept in corpus.encoded.values() for ids in kept)

    def dealt(self) -> str:
        """A note on how many examples each share has."""
        counts = {
            role: ", ".join(f"{share.value} {len(members)}" for share, members in parts.items())
            for role, parts in self.parts.items()
        }
        return f"forget examples: {counts['forget']}; retain examples: {counts['retain']}"


@dataclass(frozen=True)
class Fit:
    """A fitted cube, from `vectors` key vectors, with `floored` of its deviations raised to the floor."""

    cube: Cube
    vectors: int
    floored: int


def prepare(
    model: Activations,
    forget: Sequence[Source],
    retain: Sequence[Source],
    options: DetectorOptions,
    *,
    layers: Sequence[int] | None = None,
    retain_deal: Sequence[Share] = RETAIN_DEAL,
) -> Job:
    """Encodes, deals and checks. `layers`: those to look at where `options` names none, all by default.

    Raises CalibrationError or DataError.
    """
    frames = resolve_frames(options.frames, model.codec)
    count = model.identity.layers
    if options.layer is not None and not 0 <= options.layer < count:
        raise CalibrationError(f"got --layer {options.layer}, wanted 0 to {count - 1}")
    wanted = tuple(layers or range(count)) if options.layer is None else (options.layer,)
    forgotten, retained = encode_corpora(forget, retain, frames, model.codec, model.max_tokens)
    if len(forgotten.texts) < len(FORGET_DEAL) or len(retained.texts) < len(retain_deal):
        raise CalibrationError(
            f"got {len(forgotten.texts)} forget and {len(retained.texts)} retain examples, wanted at least "
            f"{len(FORGET_DEAL)} and {len(retain_deal)} (better {2 * FEW_VECTORS} or more of each)"
        )
    return Job(
        model,
        options,
        frames,
        wanted,
        {"forget": forgotten, "retain": retained},
        {
            "forget": forgotten.deal(FORGET_DEAL, options.seed),
            "retain": retained.deal(retain_deal, options.seed),
        },
        {f: frame_tokens([*forgotten.encoded[f], *retained.encoded[f]]) for f in frames},
    )


def shortages(job: Job, vectors: int) -> list[str]:
    """Warnings of examples that were left out, or are too few: `vectors` key vectors were fitted."""
    cap, retained = job.options.max_false_abstention, len(job.parts["retain"][Share.THRESHOLD])
    found = left_out_warnings(job.model, list(job.corpora.values()))
    if vectors < FEW_VECTORS:
        found.append(f"only {vectors} key vectors were fitted, wanted {FEW_VECTORS}: give more forget examples")
    if not enough_for_cap(retained, cap):
        found.append(
            f"{retained} retain examples for the threshold cannot show a false-abstention rate of {cap}: tau was set "
            "so that none of them fires; give more retain examples"
        )
    return found


def near_sources(frame: str, sources: Mapping[str, Rate], cap: float) -> list[str]:
    """Warnings of retain sources that by themselves are surely above the cap."""
    return [
        f"frame {frame!r}: false abstention {rate.rate:.3f} on {name} alone; the cap holds on all retain texts "
        "together: its texts may need the skill, else lower --recall"
        for name, rate in sources.items()
        if rate.low > cap
    ]


class Measured(Protocol):
    """What a guard does to prompts in one frame."""

    @property
    def recall(self) -> Rate: ...

    @property
    def false_abstention(self) -> Rate: ...


def worst_rates(frames: Sequence[Measured]) -> dict[str, Rate]:
    """The rates of an artifact's record: each of the frame where it is worst."""
    return {
        "recall": min((frame.recall for frame in frames), key=lambda rate: rate.rate),
        "false_abstention": max((frame.false_abstention for frame in frames), key=lambda rate: rate.rate),
    }


def fit_frame(job: Job, frame: str, advance: Advance) -> tuple[Fit, ...]:
    """A cube per layer from the forget set's fit part, in one pass."""
    fitters = {layer: KSDFitter(job.model.identity.d_ff) for layer in job.layers}

    def consume(layer: int, key_TF: Tensor, _: Tensor) -> None:
        fitters[layer].update(key_TF)

    job.model.stream(
        Site.KEY,
        job.layers,
        job.examples("forget", Share.FIT, frame),
        consume,
        tokens=Tokens.LAST if job.regime is Regime.LAST_TOKEN else Tokens.ALL_AND_LAST,
        batch_tokens=job.options.batch_tokens,
        skip=job.skips[frame],
        advance=lambda tokens: advance(tokens, "fit"),
    )
    return tuple(Fit(fitter.finish(layer, frame), fitter.count, fitter.floored) for layer, fitter in fitters.items())


def score_all(job: Job, fits: Sequence[Sequence[Fit]], advance: Advance) -> Scores:
    """Scores of every cube on every held-out example in every frame; one pass over each part."""
    scores: dict[tuple[Role, Share, str], Tensor] = {}
    device = job.model.device
    cubes = [
        (c, i, fit.cube.layer, fit.cube.mean_F.to(device), fit.cube.std_F.to(device).reciprocal())
        for c, row in enumerate(fits)
        for i, fit in enumerate(row)
    ]
    roles: tuple[Role, ...] = ("forget", "retain")
    for frame in job.frames:
        for role in roles:
            for share in HELD_OUT:
                examples = job.examples(role, share, frame)
                scores_CLE = torch.full((len(fits), len(job.layers), len(examples)), torch.inf, device=device)

                def consume(layer: int, key_TF: Tensor, example_T: Tensor, into_CLE: Tensor = scores_CLE) -> None:
                    for c, i, at, mean_F, inverse_F in cubes:
                        if at == layer:
                            score_T = cube_score(key_TF, mean_F, inverse_F)
                            into_CLE[c, i].scatter_reduce_(0, example_T, score_T, "amin")

                job.model.stream(
                    Site.KEY,
                    job.layers,
                    examples,
                    consume,
                    tokens=job.judged,
                    batch_tokens=job.options.batch_tokens,
                    skip=job.skips[frame],
                    advance=lambda tokens: advance(tokens, "score"),
                )
                if not bool(torch.isfinite(scores_CLE).all()):
                    raise CalibrationError("a score is not finite: the model overflows on these texts in this dtype")
                scores[role, share, frame] = scores_CLE.cpu()
    return scores
