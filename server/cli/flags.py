"""Options by the names that the command line has for them."""

import re

_OPTION = re.compile(r"`([a-z]+(?:_[a-z]+)*)`")
_ONE_AT_A_TIME = {"frames": "frame"}
"""An option of several values, whose flag is repeated."""


def as_flags(text: str) -> str:
    """A library's text with each option in backticks as its flag: `batch_tokens` becomes --batch-tokens."""
    return _OPTION.sub(lambda found: "--" + _ONE_AT_A_TIME.get(found[1], found[1]).replace("_", "-"), text)
