"""How a chat template opens messages, found out by rendering conversations.

What lies between the texts of two messages is the template's own: tokens that end the one and open the other. They are
the same whatever the texts are, so a guard knows in a forward pass, by the tokens so far alone, where a message begins
and whose it is. Only openings with a special token count, which no caller's text holds (`encoding.py`).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from guards.errors import PromptRefusedError

LONGEST = 16
"""Tokens of an opening that are looked at; of a longer one, the last."""
PROBES = (("Alpha one", "Beta two", "Gamma three"), ("delta 4", "epsilon 5", "zeta 6"))
"""Texts of messages. Some end in letters and some in figures, since a token may span a text's edge."""


@dataclass(frozen=True)
class Opening:
    """Tokens by which a template ends a message, if any, and opens the next, a special token first.

    The first `named` of them say whose message it is; what follows is blank, and may melt into the text. `written`: a
    message of the model.
    """

    tokens: tuple[int, ...]
    named: int
    written: bool


class Rendered(NamedTuple):
    """A conversation as text and tokens; `spans` says which characters each token is of."""

    text: str
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


class Renders(Protocol):
    """What is needed of a tokenizer (`guards.model.encoding.TextCodec`)."""

    @property
    def special_ids(self) -> Collection[int]: ...

    def rendered(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        """A conversation with the opening of an answer behind it. Raises PromptRefusedError."""
        ...


def find_openings(codec: Renders) -> tuple[Opening, ...]:
    """All openings of a template; none where the model's messages are not told from others by a special token."""
    found: dict[tuple[int, ...], Opening] = {}
    clash, followed = False, False
    for first, second, third in PROBES:
        asked, answer = {"role": "user", "content": first}, {"role": "assistant", "content": second}
        system, again = {"role": "system", "content": second}, {"role": "user", "content": third}
        for conversation in ([asked], [system, asked], [asked, answer, again]):
            try:
                rendered = codec.rendered(conversation)
            except PromptRefusedError:  # of a system's message, which not every template takes
                continue
            openings = list(_openings(rendered, conversation, codec.special_ids))
            followed |= len(openings) > len(conversation) > 2
            for opening in openings:
                key = opening.tokens[: opening.named]
                clash |= key in found and found[key].written != opening.written
                found.setdefault(key, opening)
    told_apart = followed and not clash
    return tuple(found.values()) if told_apart else ()


def join_openings(one: Collection[Opening], other: Collection[Opening]) -> tuple[Opening, ...]:
    """Those of two templates, either of which may render; none where one has none, or they say different things."""
    found: dict[tuple[int, ...], Opening] = {}
    for opening in (*one, *other):
        key = opening.tokens[: opening.named]
        if found.setdefault(key, opening).written != opening.written:
            return ()
    return tuple(found.values()) if one and other else ()


def _openings(
    rendered: Rendered, conversation: Sequence[Mapping[str, Any]], special: Collection[int]
) -> Iterator[Opening]:
    """From its first special token on; one for every message, and one for the answer that is due."""
    edges, at = [0], 0
    for message in conversation:
        start = rendered.text.find(message["content"], at)
        if start < 0:
            return  # a template that leaves a message out, or writes it otherwise
        at = start + len(message["content"])
        edges += [start, at]
    edges.append(len(rendered.text))
    written = [*(message["role"] == "assistant" for message in conversation), True]
    for (low, high), of_model in zip(list(pairwise(edges))[::2], written, strict=True):
        inside = [i for i, (start, end) in enumerate(rendered.spans) if low <= start < end <= high][-LONGEST:]
        while inside and rendered.ids[inside[0]] not in special:
            inside.pop(0)
        blank = [not rendered.text[slice(*rendered.spans[i])].strip() for i in inside]
        named = len(inside) - next((i for i, each in enumerate(reversed(blank)) if not each), len(inside))
        if named:
            yield Opening(tuple(rendered.ids[i] for i in inside), named, of_model)
