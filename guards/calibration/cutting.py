"""Cuts texts that are longer than a model takes, at a blank, so that long documents can be examples."""

from collections.abc import Sequence
from dataclasses import replace

from guards.artifact.canaries import CANARY_DATE
from guards.calibration.activations import Activations
from guards.calibration.corpus import resolve_frames
from guards.calibration.options import CommonOptions
from guards.calibration.sources import Source, distinct
from guards.errors import CalibrationError
from guards.model.encoding import TextCodec


def cut_sources(sources: Sequence[Source], model: Activations, options: CommonOptions) -> list[Source]:
    """The sources with what fits of each text in every frame that `options` read it in, with room for an answer.

    Raises CalibrationError for a model that does not say how many tokens it takes, DataError for a frame that it cannot
    have.
    """
    limit = model.max_tokens
    if limit is None:
        raise CalibrationError("`cut`: the model does not say how many tokens it takes; cut the texts yourself")
    limit -= options.answer_tokens
    frames, dated = resolve_frames(options, model.codec), model.codec.on_day(CANARY_DATE)
    return [_cut(source, dated, frames, limit) for source in sources]


def _cut(source: Source, codec: TextCodec, frames: Sequence[str], limit: int) -> Source:
    kept = {text: fitting(text, codec, frames, limit) for text in source.texts}
    cut = sum(text != fits for text, fits in kept.items())
    return replace(source, texts=distinct(kept.values()), cut=cut)


def fitting(text: str, codec: TextCodec, frames: Sequence[str], limit: int) -> str:
    """The longest beginning of a text, up to a blank where it has one, of at most `limit` tokens in every frame.

    The text itself where no beginning fits.
    """

    def fits(size: int) -> bool:
        return all(len(codec.encode_frame(frame, text[:size])) <= limit for frame in frames)

    if fits(len(text)):
        return text
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    blank = max((at for at, letter in enumerate(text[: low + 1]) if letter.isspace()), default=0)
    for end in (blank, low):
        if beginning := text[:end].rstrip():
            return beginning
    return text
