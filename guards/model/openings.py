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
PROBES = (("Alpha one", "Beta two", "Gamma three", "Theta four"), ("delta 4", "epsilon 5", "zeta 6", "eta 7"))
"""Texts of messages. Some end in letters and some in figures, since a token may span a text's edge."""
CALL_ID = "probe0001"
"""Nine letters and figures, as Mistral's templates want them."""


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


class Said(NamedTuple):
    """A message, and the text by which it is found again."""

    message: Mapping[str, Any]
    text: str


class Renders(Protocol):
    """What is needed of a tokenizer (`guards.model.encoding.TextCodec`)."""

    @property
    def special_ids(self) -> Collection[int]: ...

    def rendered(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        """A conversation with the opening of an answer behind it. Raises PromptRefusedError."""
        ...


def find_openings(codec: Renders) -> tuple[Opening, ...]:
    """All openings of a template; none where the model's messages are not told from others by a special token.

    A message may stand anywhere, and what ends the one before it depends on that. So the ends of an opening that begin
    with a special token count too, but for those that openings of both sides have.
    """
    found: dict[tuple[int, ...], Opening] = {}
    clash, followed = False, False
    for texts in PROBES:
        for conversation in _conversations(*texts):
            try:
                rendered = codec.rendered([message for message, _ in conversation])
            except PromptRefusedError:  # of a message that not every template takes there
                continue
            openings = list(_openings(rendered, conversation, codec.special_ids))
            followed |= len(openings) > len(conversation) > 2
            for opening in openings:
                clash |= found.setdefault(_name(opening), opening).written != opening.written
    if clash or not followed:
        return ()
    return (*found.values(), *_ends(found, codec.special_ids))


def _conversations(first: str, second: str, third: str, fourth: str) -> Iterator[list[Said]]:
    """Messages of every role in every place where they may stand, each with the text that tells where it is."""
    asked, answer, again = _said("user", first), _said("assistant", second), _said("user", third)
    call = {"id": CALL_ID, "type": "function", "function": {"name": "probe", "arguments": {"a": second}}}
    called = Said({"role": "assistant", "content": "", "tool_calls": [call]}, second)
    result = Said({"role": "tool", "name": "probe", "tool_call_id": CALL_ID, "content": third}, third)
    yield [asked]
    yield [_said("system", second), asked]
    yield [asked, answer, again]
    yield [asked, again]
    yield [asked, _said("system", second), again]
    yield [asked, answer, _said("system", fourth), again]
    yield [asked, called, result]
    yield [asked, called, result, _said("user", fourth)]


def _said(role: str, text: str) -> Said:
    return Said({"role": role, "content": text}, text)


def _name(opening: Opening) -> tuple[int, ...]:
    """The tokens that say whose message it is."""
    return opening.tokens[: opening.named]


def _ends(found: Mapping[tuple[int, ...], Opening], special: Collection[int]) -> Iterator[Opening]:
    """Ends of openings that name one side alone, and are no openings themselves."""
    ends: dict[tuple[int, ...], list[Opening]] = {}
    for opening in found.values():
        for start in range(1, opening.named):
            if opening.tokens[start] in special:
                end = Opening(opening.tokens[start:], opening.named - start, opening.written)
                ends.setdefault(_name(end), []).append(end)
    for name, of in ends.items():
        if name not in found and len({each.written for each in of}) == 1:
            yield of[0]


def join_openings(one: Collection[Opening], other: Collection[Opening]) -> tuple[Opening, ...]:
    """Those of two templates, either of which may render; none where one has none, or they say different things."""
    found: dict[tuple[int, ...], Opening] = {}
    for opening in (*one, *other):
        if found.setdefault(_name(opening), opening).written != opening.written:
            return ()
    return tuple(found.values()) if one and other else ()


def _openings(rendered: Rendered, conversation: Sequence[Said], special: Collection[int]) -> Iterator[Opening]:
    """From its first special token on; one for every message but calls, and one for the answer that is due."""
    edges, at = [0], 0
    for _, text in conversation:
        start = rendered.text.find(text, at)
        if start < 0:
            return  # a template that leaves a message out, or writes it otherwise
        at = start + len(text)
        edges += [start, at]
    edges.append(len(rendered.text))
    messages = [message for message, _ in conversation]
    kinds = [*((message["role"] == "assistant", "tool_calls" in message) for message in messages), (True, False)]
    for (low, high), (of_model, calls) in zip(list(pairwise(edges))[::2], kinds, strict=True):
        if calls:  # what opens them was seen, and what follows up to their arguments is theirs
            continue
        inside = [i for i, (start, end) in enumerate(rendered.spans) if low <= start < end <= high][-LONGEST:]
        while inside and rendered.ids[inside[0]] not in special:
            inside.pop(0)
        blank = [not rendered.text[slice(*rendered.spans[i])].strip() for i in inside]
        named = len(inside) - next((i for i, each in enumerate(reversed(blank)) if not each), len(inside))
        if named:
            yield Opening(tuple(rendered.ids[i] for i in inside), named, of_model)
