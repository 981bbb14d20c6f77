"""Stand-ins for callers' texts while a chat template is rendered: they say which part of a rendering is whose.

A message's text is replaced whole. What a template reads rather than copies, the tools and calls, keeps its structure:
there only the parts that spell a special token, or could complete one with the template's text beside them, are
replaced. A template that writes a special token around a tool's name does so on purpose.
"""

import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Piece = tuple[str, bool]
"""A part of a rendering, and whether special tokens count in it."""
_WHOLE, _INNER = re.compile("x([0-9]+)x\ue001"), re.compile("y([0-9]+)y")
"""What follows the number in a stand-in. A pattern with the number in it would take longer to compile than the rest of
a conversation's encoding.
"""
_SPACES = "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
_EDGE = 8
"""Spaces beside a stand-in."""


class SpecialTexts:
    """How special tokens are spelled."""

    def __init__(self, texts: Collection[str]) -> None:
        longest_first = sorted(map(re.escape, texts), key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        self._beginnings = {text[:size] for text in texts for size in range(1, len(text))}
        self._ends = {text[size:] for text in texts for size in range(1, len(text))}
        self._longest = max(map(len, texts), default=0)

    def split(self, text: str) -> list[str]:
        """The text in parts, of which every second one (from the second) spells a special token or may be cut from one
        at the text's edge."""
        parts = self.pattern.split(text)
        sizes = range(self._longest - 1, 0, -1)
        end = next((size for size in sizes if parts[-1][-size:] in self._beginnings), 0)
        if end:
            parts[-1:] = [parts[-1][:-end], parts[-1][-end:], ""]
        start = next((size for size in sizes if parts[0][:size] in self._ends), 0)
        if start:
            parts[:1] = ["", parts[0][:start], parts[0][start:]]
        return parts


@dataclass(frozen=True)
class _Mark:
    """A stand-in that was found: where, of which text, and whether `whole` made it, with which edges still there."""

    start: int
    end: int
    text: int
    whole: bool
    before: bool = False
    after: bool = False


class Marks:
    """The stand-ins of one conversation. No caller can write one: each holds a number drawn for this conversation."""

    def __init__(self, special: SpecialTexts) -> None:
        self._special = special
        self._nonce = f"skillguard{secrets.token_hex(8)}"
        # Private-use characters, which no template writes, between spaces that are gone where the template trims. Those
        # are drawn too, or a space that a caller writes beside a trimmed text would be taken for them.
        drawn = secrets.randbelow(len(_SPACES) ** _EDGE)
        self._edge = "".join(_SPACES[drawn // len(_SPACES) ** place % len(_SPACES)] for place in range(_EDGE))
        self._texts: list[str] = []
        self._whole: list[int] = []
        self._inner: dict[str, str] = {}

    @property
    def any_inside(self) -> bool:
        """Whether `inside` replaced anything."""
        return bool(self._inner)

    def whole(self, text: str) -> str:
        """Stands in for a text that a template copies, and may trim."""
        self._texts.append(text)
        self._whole.append(len(self._texts) - 1)
        return f"{self._edge}\ue000{self._nonce}x{len(self._texts) - 1}x\ue001{self._edge}"

    def inside(self, value: Any) -> Any:
        """A JSON value whose texts hold stand-ins; equal texts get equal ones, so that lookups still succeed."""
        if isinstance(value, str):
            parts = self._special.split(value)
            return "".join(self._part(part) if index % 2 else part for index, part in enumerate(parts))
        if isinstance(value, Mapping):
            return {self.inside(key): self.inside(each) for key, each in value.items()}
        return [self.inside(each) for each in value] if isinstance(value, list | tuple) else value

    def kept(self, rendered: str) -> list[bool]:
        """Of each text that `whole` stood in for, in that order, whether it is in a rendering of marks."""
        found = {mark.text for mark in self._found(rendered) if mark.whole}
        return [index in found for index in self._whole]

    def pieces(self, rendered: str) -> list[Piece]:
        """A rendering of marks, taken apart; texts are trimmed where the template trims what stands in for them."""
        pieces, end = [], 0
        for mark in self._found(rendered):
            text = self._texts[mark.text]
            if mark.whole:
                text = text if mark.before else text.lstrip()
                text = text if mark.after else text.rstrip()
            pieces += [(rendered[end : mark.start], True), (text, False)]
            end = mark.end
        return [*pieces, (rendered[end:], True)]

    def _found(self, rendered: str) -> Iterator[_Mark]:
        """From left to right. An edge between two belongs to the first."""
        end, at = 0, rendered.find(self._nonce)
        while at >= 0:
            behind = at + len(self._nonce)
            opened = at > end and rendered[at - 1] == "\ue000"
            if opened and (whole := _WHOLE.match(rendered, behind)):
                start, end = self._with_edges(rendered, end, at - 1, whole.end())
                yield _Mark(start, end, int(whole[1]), True, start < at - 1, end > whole.end())
            elif inner := _INNER.match(rendered, behind):
                end = inner.end()
                yield _Mark(at, end, int(inner[1]), False)
            at = rendered.find(self._nonce, max(end, behind))

    def _with_edges(self, rendered: str, least: int, start: int, end: int) -> tuple[int, int]:
        size = len(self._edge)
        if start - size >= least and rendered.startswith(self._edge, start - size):
            start -= size
        return start, end + size if rendered.startswith(self._edge, end) else end

    def _part(self, text: str) -> str:
        if text not in self._inner:
            self._texts.append(text)
            self._inner[text] = f"{self._nonce}y{len(self._texts) - 1}y"
        return self._inner[text]
