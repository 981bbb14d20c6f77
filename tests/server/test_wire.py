"""An event's JSON is one line in ASCII that says what was to be said, whoever writes it."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.openai.wire import dumped

TEXTS = st.text(st.characters(exclude_categories=())) | st.sampled_from(
    ["NaN", "Infinity", "\u2028", "\x85", "\x7f\x00\x1f", '"\\/', "\ud800"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=3))
def test_an_event_is_a_line_of_ascii_that_says_what_was_to_be_said(data: dict[str, object]) -> None:
    written = dumped(data)
    assert written.isascii()
    assert len(written.decode().splitlines()) == 1
    assert json.loads(written) == data


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back_as_they_were(number: float) -> None:
    assert json.loads(dumped({"logprob": number})) == {"logprob": number}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_has_not_is_an_error(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumped({"choices": [{"score": number}]})
