"""What the calibration of any detector starts from: checked, dealt examples.

The forget set is dealt into fit (half), threshold (a quarter) and report (a quarter). The retain set is dealt alike;
where nothing is fitted on it, into threshold and report (halves). `corpus.Share` says what for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from guards.calibration.activations import Activations, TokenIds
from guards.calibration.corpus import (
    FORGET_DEAL,
    RETAIN_DEAL,
    Corpus,
    Share,
    Side,
    corpus_warnings,
    encode_corpora,
    frame_tokens,
    resolve_frames,
)
from guards.calibration.options import DetectorOptions
from guards.calibration.sources import Source
from guards.calibration.statistics import FEW_VECTORS
from guards.calibration.thresholds import too_few_for_cap
from guards.errors import CalibrationError

Options = TypeVar("Options", bound=DetectorOptions)


@dataclass(frozen=True)
class DetectorJob(Generic[Options]):
    """The checked inputs of the passes. `skips`: each frame's own leading and trailing tokens."""

    model: Activations
    options: Options
    frames: tuple[str, ...]
    layers: tuple[int, ...]
    corpora: Mapping[Side, Corpus]
    parts: Mapping[Side, Mapping[Share, list[int]]]
    skips: Mapping[str, tuple[int, int]]

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
    options: Options,
    *,
    layers: Sequence[int] | None = None,
    retain_deal: Sequence[Share] = RETAIN_DEAL,
) -> DetectorJob[Options]:
    """Encodes, deals and checks. `layers`: those to look at where `options` names none, all by default.

    Raises CalibrationError or DataError.
    """
    frames = resolve_frames(options, model.codec)
    count = model.identity.layers
    if options.layer is not None and not 0 <= options.layer < count:
        raise CalibrationError(f"got `layer` {options.layer}, wanted 0 to {count - 1}")
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


def shortages(job: DetectorJob[Options], vectors: int) -> list[str]:
    """Warnings of examples that were left out, or are too few: `vectors` key vectors were fitted."""
    cap, retained = job.options.max_false_abstention, len(job.parts["retain"][Share.THRESHOLD])
    found = corpus_warnings(job.model, list(job.corpora.values()))
    if vectors < FEW_VECTORS:
        found.append(f"only {vectors} key vectors were fitted, wanted {FEW_VECTORS}: give more forget examples")
    return found + too_few_for_cap(retained, cap, "retain examples")


def layers_text(layers: Sequence[int]) -> str:
    """Layers, as a person reads them."""
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
