"""Stop strings and incremental text."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engines.text import StopFinder


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
