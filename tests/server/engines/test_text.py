"""Stop strings and incremental text."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from server.engines.text import StopFinder, TokenTexts


def feed(stops: Sequence[str], pieces: Sequence[str], *, include: bool = False) -> tuple[str, bool]:
    finder = StopFinder(stops, include=include)
    sent = ""
    for piece in pieces:
        safe, stopped = finder.push(piece)
        sent += safe
        if stopped:
            assert finder.flush() == "", "what follows is dropped"
            return sent, True
    return sent + finder.flush(), False


@pytest.mark.parametrize(
    ("stops", "pieces", "sent", "stopped"),
    [
        ((), ["abc"], "abc", False),
        (("END",), ["abc EN", "D tail"], "abc ", True),
        (("END",), ["abc E", "N", "x"], "abc ENx", False),
        (("b", "abc"), ["xabc"], "xa", True),
        (("b", "abc"), ["xa", "b", "c"], "xa", True),
        (("bc", "abc"), ["xabc"], "x", True),
        (("aab",), ["aa", "ab"], "a", True),
        (("\n\n",), ["line\n", "\nmore"], "line", True),
        (("END",), ["EN"], "EN", False),
    ],
)
def test_stop_strings_across_pieces(stops: tuple[str, ...], pieces: list[str], sent: str, stopped: bool) -> None:
    assert feed(stops, pieces) == (sent, stopped)


def test_nothing_that_may_become_a_stop_string_is_sent_early() -> None:
    finder = StopFinder(("STOP",))
    assert finder.push("go ST") == ("go ", False)
    assert finder.push("OP") == ("", True)


def stopped(stops: Sequence[str], text: str, *, include: bool) -> tuple[str, bool]:
    """What is to be sent of a text, by reading it letter by letter."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: end if include else min(starts)], True
    return text, False


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """A text of few letters, cut anywhere, and stop strings out of it: they overlap, and some go on otherwise."""
    text = draw(st.text("ab", max_size=10))
    places = st.tuples(st.integers(0, 9), st.integers(1, 4), st.text("ab", max_size=1))
    found = (text[at : at + size] + more for at, size, more in draw(st.lists(places, max_size=3)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [stop for stop in found if stop], pieces


@settings(max_examples=500)
@given(cut_texts(), st.booleans())
def test_what_is_sent_does_not_depend_on_the_pieces(made: tuple[list[str], list[str]], include: bool) -> None:
    stops, pieces = made
    assert feed(stops, pieces, include=include) == stopped(stops, "".join(pieces), include=include)


@settings(max_examples=500)
@given(cut_texts())
def test_nothing_is_held_back_but_the_beginning_of_a_stop_string(made: tuple[list[str], list[str]]) -> None:
    stops, pieces = made
    finder = StopFinder(stops)
    met = [finder.push(piece)[1] for piece in pieces]
    held = finder.flush()
    assert not held or any(met) or any(stop.startswith(held) and stop != held for stop in stops)


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind, with one token a byte."""
    letters = bytes_to_unicode()
    vocabulary = {letters[byte]: byte for byte in range(256)} | {"Ġfox": 256}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<|é|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=core)


def pieces() -> PreTrainedTokenizerFast:
    """SentencePiece's kind, with bytes for what it has no piece of."""
    vocabulary = {"▁fox": 0, "é": 1, **{f"<0x{byte:02X}>": 2 + byte for byte in range(256)}}
    core = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_the_bytes_of_tokens_are_the_texts() -> None:
    fox = "🦊".encode()
    texts = TokenTexts(byte_level())
    assert [texts(byte) for byte in fox] == [("\ufffd", bytes([byte])) for byte in fox]
    assert texts(256) == (" fox", b" fox")
    assert texts(ord("a")) == ("a", b"a")
    assert texts(257) == ("<|é|>", "<|é|>".encode()), "a special token is no bytes in disguise"
    assert texts(300) == ("", b""), "an id that the vocabulary does not use"
    texts = TokenTexts(pieces())
    assert b"".join(texts(2 + byte)[1] for byte in fox).decode() == "🦊"
    assert [texts(0), texts(1)] == [(" fox", b" fox"), ("é", "é".encode())]


def test_a_tokenizer_of_another_kind_is_asked() -> None:
    core = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    assert TokenTexts(PreTrainedTokenizerFast(tokenizer_object=core))(0) == ("a", b"a")
