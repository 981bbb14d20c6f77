"""How commands read a frame."""

import pytest

from server.cli.frame import read_frame


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("chat", "chat"),
        (r"Q: {text}\nA:", "Q: {text}\nA:"),
        (r"\n{text}\n\n", "\n{text}\n\n"),
        ("{text}\n", "{text}\n"),
    ],
)
def test_a_shells_two_characters_are_a_line_break(given: str, meant: str) -> None:
    assert read_frame(given) == meant
