"""What of a prompt's text may stand in a record, where the operator wants text there at all."""

import re
from collections.abc import Sequence

REDACTED = "[redacted]"
LONGEST_TEXT = 4096
"""Characters of a prompt, from its end, where what was asked last is."""


class Redaction:
    """Replaces whatever matches one of some patterns."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [re.compile(pattern) for pattern in patterns]

    def __call__(self, text: str) -> str:
        """Redacted as a whole, and then cut: half a key would not be told for one."""
        for pattern in self._patterns:
            text = pattern.sub(REDACTED, text)
        return text[-LONGEST_TEXT:]
