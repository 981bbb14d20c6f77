"""Lines that are chained: each holds its number, the hash of the line before it, and its own.

A line is a JSON object whose last member is `hash`, the SHA-256 of the object without that member. `previous` is the
`hash` of the line before, and 64 zeros in the first line. So a line that was changed, removed, added or moved no longer
fits the one behind it. Who can write the files can also write the rest of a chain anew, or cut its end off: only a hash
that was noted elsewhere shows that.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOTHING = "0" * 64
"""`previous` of the first line."""

_HASH = re.compile(rb',"hash":"([0-9a-f]{64})"\}')
_HASH_BYTES = len(',"hash":""}') + 64


class BrokenLineError(ValueError):
    """A line that nobody of ours wrote so. Says why."""


@dataclass(frozen=True)
class Link:
    """Where a chain is: how many lines it has, and the hash of the last."""

    lines: int = 0
    head: str = NOTHING


@dataclass(frozen=True)
class Line:
    """A line as it was read. `fields` has all that it says, its place in the chain included."""

    number: int
    previous: str
    hash: str
    fields: Mapping[str, Any]

    @property
    def link(self) -> Link:
        """The chain up to and with it."""
        return Link(self.number + 1, self.hash)


def sealed(link: Link, fields: Mapping[str, object]) -> tuple[bytes, Link]:
    """The next line of a chain, with its line break, and the chain with it. ASCII only.

    Raises ValueError for a number that is not finite, and TypeError for what JSON has no word for.
    """
    body = json.dumps({"number": link.lines, "previous": link.head, **fields}, separators=(",", ":"), allow_nan=False)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f'{body[:-1]},"hash":"{digest}"}}\n'.encode(), Link(link.lines + 1, digest)


def parsed(line: bytes) -> Line:
    """A line without its line break. Raises BrokenLineError."""
    if _HASH.fullmatch(line[-_HASH_BYTES:]) is None:
        raise BrokenLineError("it does not end in its hash")
    body, stated = line[:-_HASH_BYTES] + b"}", line[-66:-2].decode()
    if hashlib.sha256(body).hexdigest() != stated:
        raise BrokenLineError("it was changed: its hash is another")
    try:
        fields = json.loads(body)
        number, previous = fields["number"], fields["previous"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenLineError("it is no record of an audit log") from error
    if type(number) is not int or number < 0 or not isinstance(previous, str):
        raise BrokenLineError("it is no record of an audit log")
    return Line(number, previous, stated, fields)
