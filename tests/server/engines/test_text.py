"""Stop strings and incremental text."""

import pytest

from server.engines.text import StopFinder


def feed(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    finder = StopFinder(stops)
    sent = ""
    for piece in pieces:
        safe, stopped = finder.push(piece)
        sent += safe
        if stopped:
            return sent, True
    return sent + finder.flush(), False


@pytest.mark.parametrize(
    ("stops", "pieces", "sent", "stopped"),
    [
        ((), ["abc"], "abc", False),
        (("END",), ["abc EN", "D tail"], "abc ", True),
        (("END",), ["abc E", "N", "x"], "abc ENx", False),
        (("b", "abc"), ["xabc"], "x", True),
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
