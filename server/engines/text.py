"""Token ids back to text, as they come: whole characters only, and nothing past a stop string."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers.convert_slow_tokenizer import bytes_to_unicode

from guards.model.openings import Opening

_BYTE = re.compile("<0x([0-9A-F]{2})>")


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


class OthersOpenings:
    """The openings by which a chat template begins a message that is not the model's.

    A model that writes one has ended its own message. What it wrote behind it would count as somebody else's.
    """

    def __init__(self, openings: Iterable[Opening] = ()) -> None:
        self._by_last: dict[int, list[tuple[int, ...]]] = {}
        for opening in openings:
            if not opening.written:
                self._by_last.setdefault(opening.name[-1], []).append(opening.name)

    def end(self, tokens: Sequence[int]) -> bool:
        """Whether one is complete with the last of these tokens."""
        return any(tuple(tokens[-len(name) :]) == name for name in self._by_last.get(tokens[-1], ()))


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


class TokenTexts:
    """What each token is, as shown beside log-probabilities: its text, and the bytes that it is.

    The bytes of an answer's tokens joined are the answer's, also where a character is of several tokens. The text of a
    token that is no whole character holds a replacement character, as vLLM's does.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {int(token): str(of.content) for token, of in tokenizer.added_tokens_decoder.items()}
        kinds = set(_decoders(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder")))
        self._letters = {letter: byte for byte, letter in bytes_to_unicode().items()} if "ByteLevel" in kinds else None
        self._pieces = "ByteFallback" in kinds  # SentencePiece's, with a mark for a space
        self._known = lru_cache(maxsize=65536)(self._read)

    def __call__(self, token_id: int) -> tuple[str, bytes]:
        return self._known(token_id)

    def _read(self, token_id: int) -> tuple[str, bytes]:
        raw = self._bytes(token_id)
        if raw is None:
            text = str(self._tokenizer.decode([token_id]))
            return text, text.encode()
        return raw.decode(errors="replace"), raw

    def _bytes(self, token_id: int) -> bytes | None:
        """None where the vocabulary does not tell."""
        if token_id in self._added:
            return self._added[token_id].encode()
        spelled = self._tokenizer.convert_ids_to_tokens(token_id)
        if spelled is None:
            return b""
        if self._letters is not None and all(letter in self._letters for letter in spelled):
            return bytes(self._letters[letter] for letter in spelled)
        if self._pieces:
            byte = _BYTE.fullmatch(spelled)
            return bytes([int(byte[1], 16)]) if byte else spelled.replace("\u2581", " ").encode()
        return None


def _decoders(decoder: Any) -> Iterator[str]:
    """The kinds in a tokenizer's decoder, as its file has it."""
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for inner in decoder.get("decoders", ()):
            yield from _decoders(inner)
