"""The texts of one side of a calibration: encoded in every frame and dealt into parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from guards.artifact.canaries import CANARY_DATE
from guards.artifact.manifest import SourceRecord
from guards.calibration.activations import Activations, TokenIds
from guards.calibration.options import CommonOptions
from guards.calibration.sources import Source, compared, refuse_overlap, seeded_rank
from guards.errors import CalibrationError
from guards.model.encoding import TextCodec
from guards.model.frames import BARE_FRAME, CHAT_FRAME, check_frame

Side = Literal["forget", "retain"]
SIDES: tuple[Side, ...] = ("forget", "retain")


class Share(StrEnum):
    """What a part of the examples is for. No example is in two parts."""

    FIT = "fit"
    """Mean, deviation and k."""
    THRESHOLD = "threshold"
    """The layer and tau."""
    REPORT = "report"
    """The rates that are written down: nothing was chosen on these."""


FORGET_DEAL = (Share.FIT, Share.THRESHOLD, Share.FIT, Share.REPORT)
RETAIN_DEAL = (Share.THRESHOLD, Share.REPORT)


@dataclass(frozen=True)
class Corpus:
    """One side's examples. `encoded[frame][e]` are example e's token ids, `source_of[e]` the index of its source."""

    role: Side
    sources: tuple[Source, ...]
    texts: tuple[str, ...]
    source_of: tuple[int, ...]
    encoded: Mapping[str, tuple[TokenIds, ...]]
    left_out: int
    """Examples longer than the model's context in some frame."""

    def records(self) -> tuple[SourceRecord, ...]:
        """One record per source; `tokens` counts all frames together."""
        counts = [[0, 0] for _ in self.sources]
        for example, source in enumerate(self.source_of):
            counts[source][0] += 1
            counts[source][1] += sum(len(ids[example]) for ids in self.encoded.values())
        return tuple(
            SourceRecord(
                role=self.role,
                name=source.name,
                sha256=source.sha256,
                examples=examples,
                tokens=tokens,
                field=source.field,
                rows=source.rows,
                repeats=source.repeats,
                cut=source.cut or None,
            )
            for source, (examples, tokens) in zip(self.sources, counts, strict=True)
        )

    def deal(self, order: Sequence[Share], seed: int) -> dict[Share, list[int]]:
        """Example indices by share, dealt round and round within each source in a seeded order.

        The outcome depends on the texts and the seed, not on the order in which the texts came.
        """
        parts: dict[Share, list[int]] = {share: [] for share in order}
        dealt = 0
        for source in range(len(self.sources)):
            members = [e for e, at in enumerate(self.source_of) if at == source]
            for rank in seeded_rank([self.texts[e] for e in members], seed):
                parts[order[dealt % len(order)]].append(members[rank])
                dealt += 1
        return {share: sorted(members) for share, members in parts.items()}


def resolve_frames(options: CommonOptions, codec: TextCodec) -> tuple[str, ...]:
    """The frames asked for, or the model's natural one and what the method has beside it.

    Raises DataError on a frame the model cannot have.
    """
    natural = CHAT_FRAME if codec.chat.serves else BARE_FRAME
    wanted = options.frames or tuple(dict.fromkeys((natural, *options.further_frames)))
    for frame in wanted:
        codec.encode_frame(check_frame(frame), "text")
    return wanted


def _encode(
    role: Side, sources: Sequence[Source], frames: Sequence[str], codec: TextCodec, max_tokens: int | None
) -> Corpus:
    seen: set[str] = set()
    texts: list[str] = []
    source_of: list[int] = []
    encoded: dict[str, list[TokenIds]] = {frame: [] for frame in frames}
    left_out = 0
    for index, source in enumerate(sources):
        for text in source.texts:
            if compared(text) in seen:
                continue
            seen.add(compared(text))
            ids = [codec.encode_frame(frame, text) for frame in frames]
            if any(not one or (max_tokens is not None and len(one) > max_tokens) for one in ids):
                left_out += 1
                continue
            texts.append(text)
            source_of.append(index)
            for frame, one in zip(frames, ids, strict=True):
                encoded[frame].append(one)
    if not texts:
        raise CalibrationError(f"no {role} example fits the model's context of {max_tokens} tokens")
    frozen = {frame: tuple(ids) for frame, ids in encoded.items()}
    return Corpus(role, tuple(sources), tuple(texts), tuple(source_of), frozen, left_out)


def encode_corpora(
    forget: Sequence[Source],
    retain: Sequence[Source],
    frames: Sequence[str],
    codec: TextCodec,
    max_tokens: int | None,
) -> tuple[Corpus, Corpus]:
    """Both sides, encoded as the server encodes on CANARY_DATE. A text given twice on one side counts once, but
    for blanks around it.

    Raises DataError when a text is on both sides, CalibrationError when a side is empty.
    """
    for role, sources in (("forget", forget), ("retain", retain)):
        if not any(source.texts for source in sources):
            raise CalibrationError(f"got no {role} examples: give at least one source of it")
    refuse_overlap(forget, retain)
    dated = codec.on_day(CANARY_DATE)
    return (
        _encode("forget", forget, frames, dated, max_tokens),
        _encode("retain", retain, frames, dated, max_tokens),
    )


def corpus_warnings(model: Activations, corpora: Sequence[Corpus]) -> list[str]:
    """One for each side with examples longer than the model's context, and for each source whose rows mostly repeat."""
    left_out = [
        f"{corpus.left_out} {corpus.role} example(s) were left out: longer than the model's {model.max_tokens} tokens; "
        "`cut` takes what fits"
        for corpus in corpora
        if corpus.left_out
    ]
    repeating = [
        f"{source.name}: {source.repeats} of {source.rows} rows repeat others in field {source.field}, so that "
        f"{len(source.texts)} examples are left: is that the field? Name another with #FIELD"
        for corpus in corpora
        for source in corpus.sources
        if source.rows is not None and source.repeats is not None and 2 * source.repeats > source.rows
    ]
    return [*left_out, *repeating]


def _shared(examples: Sequence[TokenIds]) -> int:
    first, last = min(examples), max(examples)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def frame_tokens(examples: Sequence[TokenIds]) -> tuple[int, int]:
    """How many leading and trailing tokens all examples share: the frame's own, no part of any text.

    At least one token of every example is left over.
    """
    shortest = min(len(ids) for ids in examples)
    leading = min(_shared(examples), shortest - 1)
    return leading, min(_shared([ids[::-1] for ids in examples]), shortest - 1 - leading)
