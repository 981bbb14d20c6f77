"""Which prompts of a calibration become the canaries of its artifact."""

from collections.abc import Sequence

import torch

from guards.artifact.canaries import canary_source, clear_verdict, encode_source
from guards.artifact.manifest import Canary, CanarySource
from guards.calibration.activations import Activations, TokenIds
from guards.calibration.corpus import Corpus
from guards.contract.guard import Guard
from guards.contract.method import Method
from guards.core.verdict import GuardKind, Reading
from guards.errors import CalibrationError
from guards.model.shard import WHOLE

MAX_CANARIES = 16
CANARIES_PER_SIDE = 4
CANARY_TRIES = 200


def choose_canaries(
    model: Activations, method: Method, guard: Guard, forget: Corpus, retain: Corpus, frames: Sequence[str]
) -> tuple[Canary, ...]:
    """Short prompts of both sides in every frame, read one at a time as a server reads them.

    Forget prompts that clearly fire and retain prompts that clearly do not (for an intervention: prompts of both sides
    that clearly are shifted, of retain prompts where there are any). Raises CalibrationError when a side has none.
    """
    detector = method.kind is GuardKind.DETECTOR
    quota = max(1, min(CANARIES_PER_SIDE, MAX_CANARIES // (2 * len(frames))))
    found: list[Canary] = []
    dtype = model.identity.dtype
    taus = method.bind(guard, torch.device("cpu"), WHOLE).taus
    with model.reading(method, guard) as read:
        for corpus, wanted in ((forget, True), (retain, not detector)):
            side = tried = 0
            for frame in frames[: MAX_CANARIES // 2]:
                taken = 0
                for source in _shortest(corpus, frame)[:CANARY_TRIES]:
                    tried += 1
                    ids = encode_source(model.codec, source)
                    reading, scores = read(ids)
                    if reading not in (Reading.INSIDE, Reading.OUTSIDE):
                        raise CalibrationError(
                            f"the finished guard gives no finite reading ({reading.name}) on a calibration prompt"
                        )
                    if clear_verdict(scores, taus, dtype=dtype, drift=method.drift) is wanted:
                        found.append(_canary(ids, scores, wanted, source))
                        taken += 1
                    if taken == quota:
                        break
                side += taken
            if not side and (corpus is forget or detector):  # of a good intervention others may notice nothing
                does = "clearly fires" if wanted else "is clear of"
                more = "a larger `fraction`, `strength` or `beta`"
                instead = "another `layer`, `recall` or `scope`" if detector else more
                raise CalibrationError(
                    f"none of {tried} {corpus.role} prompts, the shortest of each frame, {does} the guard at its last "
                    f"token, so no server could verify it at start: give more examples, or {instead}"
                )
    return tuple(found)


def _shortest(corpus: Corpus, frame: str) -> list[CanarySource]:
    """What a frame's prompts are encoded from, by their number of tokens; one for each sequence of token ids."""
    text_of = dict(sorted(zip(corpus.encoded[frame], corpus.texts, strict=True), reverse=True))
    return [canary_source(frame, text_of[ids]) for ids in sorted(text_of, key=lambda ids: (len(ids), ids))]


def _canary(ids: TokenIds, scores: tuple[float, ...], fires: bool, source: CanarySource) -> Canary:
    if isinstance(source, str):
        return Canary(token_ids=ids, scores=scores, fires=fires, text=source)
    return Canary(token_ids=ids, scores=scores, fires=fires, messages=source)
