"""Prompts whose readings are known, and whether a live engine, template and tokenizer still give them."""

from collections.abc import Sequence
from datetime import datetime

from guards.artifact.manifest import Canary, CanaryMessage, CanarySource, Manifest
from guards.core.drift import Drift
from guards.core.verdict import GuardKind, Reading
from guards.errors import PromptRefusedError
from guards.model.encoding import TextCodec
from guards.model.frames import CHAT_FRAME, frame_text

CLEAR_INSIDE = 0.9
CLEAR_OUTSIDE = 1.1
"""A canary's score over tau is at most the one, or at least the other, however little its dtype drifts."""

CANARY_DATE = datetime(2024, 7, 26)
"""The day that templates write into canaries: with today's, a guard would not be verified tomorrow. And into all that a
calibration reads, whose result is then the same on any day.
"""


def canary_source(frame: str, text: str) -> CanarySource:
    """A text in its frame, as a canary writes it. Raises DataError on what is no frame."""
    return (CanaryMessage(role="user", content=text),) if frame == CHAT_FRAME else frame_text(frame, text)


def encode_source(codec: TextCodec, source: CanarySource) -> tuple[int, ...]:
    """A canary's token ids. Raises PromptRefusedError like `TextCodec.encode_chat`."""
    if isinstance(source, str):
        return codec.encode_text(source)
    return codec.on_day(CANARY_DATE).encode_chat([message.model_dump() for message in source])


def bound_to_text(manifest: Manifest) -> bool:
    """Whether a changed template or tokenizer can be told: by a canary's source, or by the template's digest."""
    record = manifest.calibration
    by_digest = CHAT_FRAME in record.frames and record.template_sha256 is not None
    return by_digest or any(canary.source is not None for canary in manifest.canaries)


def text_difference(manifest: Manifest, codec: TextCodec) -> str | None:
    """None where the live template and tokenizer give the token ids of every canary with a source, else got and wanted.

    Where the frame "chat" was calibrated and no canary has messages, as before canaries had sources, the template's
    digest must agree instead.
    """
    for index, canary in enumerate(manifest.canaries):
        if canary.source is None:
            continue
        kind = "text" if canary.messages is None else "messages"
        try:
            got = encode_source(codec, canary.source)
        except PromptRefusedError as error:
            return f"canary {index}: its {kind} gave no token ids ({error}), wanted {len(canary.token_ids)}"
        if got != canary.token_ids:
            return f"canary {index}: its {kind} gave {_first_difference(got, canary.token_ids)}"
    record = manifest.calibration
    messages = any(canary.messages is not None for canary in manifest.canaries)
    if CHAT_FRAME in record.frames and not messages and codec.chat.variables:
        return "got variables of the chat template, wanted none: no canary has messages, which would show what they do"
    if CHAT_FRAME in record.frames and not messages and codec.chat.sha256 != record.template_sha256:
        return f"got chat template {_short(codec.chat.sha256)}, wanted {_short(record.template_sha256)} (SHA-256)"
    return None


def _first_difference(got: Sequence[int], wanted: Sequence[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    here, there = (ids[at] if at < len(ids) else "none" for ids in (got, wanted))
    return f"{len(got)} token ids, wanted {len(wanted)}; the first other one is at {at}: got {here}, wanted {there}"


def _short(digest: str | None) -> str:
    return "none" if digest is None else f"{digest[:12]}..."


def clear_verdict(scores: Sequence[float], taus: Sequence[float], *, dtype: str, drift: Drift) -> bool | None:
    """Whether a guard surely fires where these scores were read (True), surely does not (False), or neither (None).

    Surely: with every score anywhere within its drift. An intervention has no taus, and is never sure not to act: a
    prompt of which it moves nothing here could move it on another engine.
    """
    rooms = [drift.of(score, dtype) for score in scores]
    if not taus:
        return True if scores[0] > rooms[0] else None
    parts = list(zip(scores, rooms, taus, strict=True))
    if any(score / tau <= CLEAR_INSIDE and score + room <= tau for score, room, tau in parts):
        return True
    return False if all(score / tau >= CLEAR_OUTSIDE and score - room > tau for score, room, tau in parts) else None


def room_left(canary: Canary, scores: Sequence[float], *, dtype: str, drift: Drift) -> float:
    """Share of the drift that is allowed which no score used up: 1 where all are as calibrated, 0 at the edge."""
    return min(
        1 - abs(got - wanted) / drift.of(wanted, dtype) for got, wanted in zip(scores, canary.scores, strict=True)
    )


def disagreement(
    canary: Canary,
    reading: Reading,
    scores: Sequence[float],
    *,
    dtype: str,
    kind: GuardKind,
    drift: Drift,
    alone: bool,
) -> str | None:
    """None when the live reading agrees with the canary, else what was got and wanted.

    `alone` is False where another guard changes activations: scores then move for a good reason, and only whether
    the guard fires must still agree.
    """
    if reading not in (Reading.OUTSIDE, Reading.INSIDE):
        return f"got no finite reading ({reading.name}), wanted scores {list(canary.scores)}"
    if len(scores) != len(canary.scores):
        return f"got {len(scores)} score(s), wanted {len(canary.scores)}"
    fires = reading is Reading.INSIDE if kind is GuardKind.DETECTOR else scores[0] > 0
    if fires != canary.fires:
        return f"got a guard that {'fires' if fires else 'does not fire'}, wanted the opposite"
    if not alone:
        return None
    for got, wanted in zip(scores, canary.scores, strict=True):
        if not abs(got - wanted) <= drift.of(wanted, dtype):
            return f"got score {got:.6g}, wanted {wanted:.6g}"
    return None
