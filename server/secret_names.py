"""Names by which a secret is known, so that none is taken from a file or printed."""

import re
from collections.abc import Sequence

_SECRET = re.compile(r"(.*[._-])?(key|token|secret|password|passwd|passphrase|credentials?)s?", re.IGNORECASE)
_NO_SECRET = re.compile(r"(.*[._-])?tokens", re.IGNORECASE)
"""Numbers of tokens, as in max_batch_tokens."""


def is_secret(name: str) -> bool:
    """Whether what has this name would be a secret: api_key, --hf-token."""
    return _SECRET.fullmatch(name) is not None and _NO_SECRET.fullmatch(name) is None


def redacted(flags: Sequence[str]) -> list[str]:
    """The same command line, fit to be shown."""
    shown: list[str] = []
    hides = False
    for word in flags:
        name, is_, _ = word.partition("=")
        if word.startswith("-"):
            hides = is_secret(name)
            shown.append(f"{name}=***" if hides and is_ else word)
        else:
            shown.append("***" if hides else word)
    return shown
