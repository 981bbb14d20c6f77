"""Token ids back to text, as they come: whole characters only, and nothing past a stop string."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class StopFinder:
    """Passes text on, holding back what may be the beginning of a stop string.

    An answer ends at the first stop string that is complete; of several that are complete at once, the longest counts.
    So it does not depend on how the text was cut into tokens, and no token is drawn to find out.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops, self._include = tuple(stops), include
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to send, and whether a stop string was met.

        It is dropped, unless it is to be included; what follows always is.
        """
        if not self._stops:
            return text, False
        self._held += text
        found = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if found:
            end, start = min(found)
            safe, self._held = self._held[: end if self._include else start], ""
            return safe, True
        keep = max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(self._held)) + 1)
                if self._held.endswith(stop[:size])
            ),
            default=0,
        )
        cut = len(self._held) - keep
        safe, self._held = self._held[:cut], self._held[cut:]
        return safe, False

    def flush(self) -> str:
        """What was held back, at the end of an answer."""
        held, self._held = self._held, ""
        return held


class Detokenizer:
    """Incremental decoding with the tokenizer's own stream decoder.

    Special tokens are left out unless asked for, and so is a character that an answer was cut in the middle of.
    """

    def __init__(self, tokenizer: Any, *, special_tokens: bool = False) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=not special_tokens)

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty in the middle of a character."""
        return self._stream.step(self._backend, token_id) or ""


def token_text(tokenizer: Any, token_id: int) -> tuple[str, bytes]:
    """One token as shown beside log-probabilities: its text and its UTF-8 bytes."""
    text = str(tokenizer.decode([token_id]))
    return text, text.encode()
