"""Texts longer than the context: their longest beginning that fits in every frame."""

import pytest

from guards.calibration.cutting import cut_sources, fitting
from guards.calibration.options import CommonOptions
from guards.calibration.sources import Source
from guards.errors import CalibrationError
from guards.inside.transformers.loading import LoadedModel
from guards.model.encoding import TextCodec
from tests.guards.tiny import tiny_loaded, tiny_tokenizer


@pytest.mark.parametrize(
    ("text", "limit", "wanted"),
    [
        ("short", 20, "short"),
        ("one two three", 9, "one two"),
        ("one two three", 7, "one two"),
        ("one two three", 6, "one"),
        ("wholeword", 4, "whol"),
        ("  wholeword", 4, "  wh"),
    ],
)
def test_cut_at_a_blank(text: str, limit: int, wanted: str) -> None:
    assert fitting(text, TextCodec(tiny_tokenizer()), ("bare",), limit) == wanted


def test_what_fits_in_every_frame_and_no_less() -> None:
    codec = TextCodec(tiny_tokenizer())
    text = "a b c d e f g h i j k l m n o p"
    found = fitting(text, codec, ("chat", "bare"), 20)
    assert len(codec.encode_frame("chat", found)) <= 20 < len(codec.encode_frame("chat", text[: len(found) + 2]))
    assert fitting(text, codec, ("chat",), 3) == text, "no beginning fits: it is left out as before"


def test_sources() -> None:
    model, long = tiny_loaded(), "word " * 50
    cut, same = cut_sources([Source("a", ("short", long, long + "more")), Source("b", ("x",))], model, CommonOptions())
    assert (len(cut.texts), cut.cut, same) == (2, 2, Source("b", ("x",)))
    assert all(len(model.codec.encode_frame("chat", text)) <= 64 for text in cut.texts)


def test_a_model_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoadedModel, "max_tokens", None)
    with pytest.raises(CalibrationError, match="does not say how many tokens"):
        cut_sources([Source("a", ("x",))], tiny_loaded(), CommonOptions())
