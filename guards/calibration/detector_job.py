"""The two passes of a Key Space Detection calibration: fit cubes, then score held-out examples.

Suffixes: L layers, C cubes (one per fitted frame), E examples, T tokens, F feed-forward width (d_ff).

The forget set is dealt into fit (half), threshold (a quarter) and report (a quarter), the retain set, of which cubes
fit nothing, into threshold and report (halves); `corpus.Share` says what for. Memory grows with frames^2 *
layers * examples scalars, never with vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from guards.artifact.manifest import Rate
from guards.calibration.activations import Activations, TokenIds, Tokens
from guards.calibration.corpus import (
    FORGET_DEAL,
    RETAIN_DEAL,
    Corpus,
    Share,
    Side,
    encode_corpora,
    frame_tokens,
    resolve_frames,
)
from guards.calibration.finished import left_out_warnings
from guards.calibration.options import DetectorOptions, KSDOptions
from guards.calibration.sources import Source
from guards.calibration.thresholds import enough_for_cap
from guards.core.verdict import Scope
from guards.errors import CalibrationError
from guards.methods.cube.guard import FEW_VECTORS, Regime


@dataclass(frozen=True)
class DetectorJob:
    """The checked inputs of the passes. `skips`: each frame's own leading and trailing tokens."""

    model: Activations
    options: DetectorOptions
    frames: tuple[str, ...]
    layers: tuple[int, ...]
    corpora: Mapping[Side, Corpus]
    parts: Mapping[Side, Mapping[Share, list[int]]]
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

    def examples(self, role: Side, share: Share, frame: str) -> list[TokenIds]:
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


def prepare(
    model: Activations,
    forget: Sequence[Source],
    retain: Sequence[Source],
    options: DetectorOptions,
    *,
    layers: Sequence[int] | None = None,
    retain_deal: Sequence[Share] = RETAIN_DEAL,
) -> DetectorJob:
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
    return DetectorJob(
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


def shortages(job: DetectorJob, vectors: int) -> list[str]:
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
