"""Texts longer than the context: their longest beginning that fits in every frame."""

import pytest

from guards.calibration.corpus import encode_corpora, resolve_frames
from guards.calibration.cutting import cut_sources, fitting
from guards.calibration.options import CommonOptions
from guards.calibration.sources import Source
from guards.errors import CalibrationError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.probe.options import ProbeOptions
from guards.methods.probe_project.options import ProjectOptions
from guards.methods.spans.options import SpanOptions
from guards.model.encoding import TextCodec
from tests.guards.tiny import DATED_TEMPLATE, TEMPLATE, tiny_loaded, tiny_tokenizer


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


@pytest.mark.parametrize("template", [TEMPLATE, DATED_TEMPLATE, None])
@pytest.mark.parametrize(
    "options",
    [CommonOptions(), SpanOptions(answers=8), SpanOptions(answers=0), ProbeOptions(answers=8), ProjectOptions()],
    ids=type,
)
def test_what_is_cut_fits_in_the_methods_own_frames(options: CommonOptions, template: str | None) -> None:
    """A base model has no template, and Key Space Detection a frame that is longer than a text alone."""
    model = tiny_loaded(chat_template=template)
    cut = cut_sources([Source("a", ("word" * 50,))], model, options)
    frames = resolve_frames(options, model.codec)
    [forget, _] = encode_corpora(cut, [Source("b", ("x",))], frames, model.codec, model.max_tokens)
    assert (forget.left_out, len(forget.texts)) == (0, 1)
    assert model.max_tokens is not None
    most = model.max_tokens - options.answer_tokens
    assert max(len(ids) for (ids,) in forget.encoded.values()) == most, "and no less, with room for an answer"


def test_a_model_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoadedModel, "max_tokens", None)
    with pytest.raises(CalibrationError, match="does not say how many tokens"):
        cut_sources([Source("a", ("x",))], tiny_loaded(), CommonOptions())
