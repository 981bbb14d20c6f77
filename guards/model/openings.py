"""How a chat template opens messages, found out by rendering conversations.

What lies between the texts of two messages is the template's own: tokens that end the one and open the other. They are
the same whatever the texts are, so a guard knows in a forward pass, by the tokens so far alone, where a message begins
and whose it is. Only openings with a special token count, which no caller's text holds (`encoding.py`).
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any, NamedTuple, Protocol

from guards.errors import PromptRefusedError

logger = logging.getLogger("skillguard.guards")

LONGEST = 16
"""Tokens of an opening that are looked at; of a longer one, the last."""
_PROBES = (
    ("Alpha one", "Beta two", "Gamma three", "Theta four", "probe", "probe0001"),
    ("delta 4", "epsilon 5", "zeta 6", "eta 7", "lookup", "aBcDeFgH2"),
    ("The first", "How many", "What else", "If so", "f2", "x3Y4z5W6v"),
)
"""Texts of messages, the name of a function and a call's id. They begin and end otherwise each time, since a token may
span a text's edge; what is not the same in all is no part of an opening. Ids are as Mistral's templates want them.
"""
_ANSWERS = ("Well, yes", '"Quoted" words', "# Title", '{"a": 1}', "- one", "1. One", "I see")
"""How a model may begin, behind what opens its message."""


@dataclass(frozen=True)
class Opening:
    """Tokens by which a template ends a message, if any, and opens the next, a special token first.

    The first `named` of them say whose message it is; what follows is blank, and may melt into the text. `written`: a
    message of the model.
    """

    tokens: tuple[int, ...]
    named: int
    written: bool

    @property
    def name(self) -> tuple[int, ...]:
        """The tokens that say whose message it is."""
        return self.tokens[: self.named]


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


class _Said(NamedTuple):
    """A message, and the text by which it is found again."""

    message: Mapping[str, Any]
    text: str

    @property
    def kind(self) -> tuple[bool, bool]:
        """Whether it is the model's, and whether it calls."""
        return self.message["role"] == "assistant", "tool_calls" in self.message


def find_openings(*codecs: Renders) -> tuple[Opening, ...]:
    """All openings of a template, or of several, any of which may render; none where the model's messages are not told
    from others by a special token.

    A message may stand anywhere, and what ends the one before it depends on that. So an opening's end counts too, where
    it begins with a special token and the other side may not say it.
    """
    names: dict[tuple[int, ...], Opening] = {}
    own: list[tuple[int, ...]] = []
    for codec in codecs:
        found, followed = _names(codec)
        clash = any(names.get(each.name, each).written != each.written for each in found)
        for each in found:
            clash |= names.setdefault(each.name, each).written != each.written
        special = codec.special_ids
        clash = clash or any(_undecided(one.name, other.name, special) for one, other in _pairs(names.values()))
        if clash or not followed:
            if clash:
                logger.warning(
                    "the chat template opens messages of the model and of others alike, so guards over spans judge a "
                    "conversation as one message"
                )
            return ()
        own += _own(codec)
    sure = [each for each in names.values() if not _may_say(each, names.values(), own, special)]
    return (*sure, *_ends(names, own, special))


def _names(codec: Renders) -> tuple[list[Opening], bool]:
    """Openings of whole messages, and whether one follows the model's own."""
    found, followed = [], False
    shapes = zip(*map(list, (_conversations(*probe) for probe in _PROBES)), strict=True)
    for index, variants in enumerate(shapes):
        gaps = [gap for each in variants if (gap := _gaps(codec, each)) is not None]
        if not gaps:
            continue
        kinds = [*(said.kind for said in variants[0]), (True, False)]
        openings = [
            opening
            for slot, (written, calls) in enumerate(kinds)
            if not calls and (opening := _opening([gap[slot] for gap in gaps], written)) is not None
        ]
        followed |= index == _FOLLOWED and len(openings) == len(kinds)
        found += openings
    return found, followed


def _conversations(
    first: str, second: str, third: str, fourth: str, function: str, call_id: str
) -> Iterator[list[_Said]]:
    """Messages of every role in every place where they may stand."""
    asked, answer, again = _said("user", first), _said("assistant", second), _said("user", third)
    call = {"id": call_id, "type": "function", "function": {"name": function, "arguments": {"a": second}}}
    called = _Said({"role": "assistant", "content": "", "tool_calls": [call]}, second)
    result = _Said({"role": "tool", "tool_call_id": call_id, "content": third}, third)
    yield [asked, answer, again]
    yield [asked]
    yield [_said("system", second), asked]
    yield [asked, again]
    yield [asked, _said("system", second), again]
    yield [asked, answer, _said("system", fourth), again]
    yield [asked, called, result]
    yield [asked, called, result, _said("user", fourth)]


_FOLLOWED = 0
"""The first of them shows whether a message behind the model's is told from it."""


def _said(role: str, text: str) -> _Said:
    return _Said({"role": role, "content": text}, text)


class _Token(NamedTuple):
    id: int
    blank: bool


def _gaps(codec: Renders, conversation: Sequence[_Said]) -> list[list[_Token]] | None:
    """The template's tokens before each message and before the answer that is due, each from its first special one on.

    None where the template does not take the conversation, leaves a message out, or writes it otherwise.
    """
    try:
        rendered = codec.rendered([message for message, _ in conversation])
    except PromptRefusedError:
        return None
    edges, at = [0], 0
    for _, text in conversation:
        start = rendered.text.find(text, at)
        if start < 0:
            return None
        at = start + len(text)
        edges += [start, at]
    edges.append(len(rendered.text))
    gaps = []
    for low, high in list(pairwise(edges))[::2]:
        inside = [i for i, (start, end) in enumerate(rendered.spans) if low <= start < end <= high][-LONGEST:]
        while inside and rendered.ids[inside[0]] not in codec.special_ids:
            inside.pop(0)
        gaps.append([_Token(rendered.ids[i], not rendered.text[slice(*rendered.spans[i])].strip()) for i in inside])
    return gaps


def _opening(gaps: Sequence[Sequence[_Token]], written: bool) -> Opening | None:
    """What gaps have in common, if that is more than blanks."""
    alike = list(takewhile(lambda tokens: len({each.id for each in tokens}) == 1, zip(*gaps, strict=False)))
    blank = [each[0].blank for each in alike]
    named = len(alike) - next((i for i, each in enumerate(reversed(blank)) if not each), len(alike))
    return Opening(tuple(each[0].id for each in alike), named, written) if named else None


def _pairs(openings: Collection[Opening]) -> Iterator[tuple[Opening, Opening]]:
    """Each of one side with each of the other."""
    for one in openings:
        for other in openings:
            if one.written != other.written:
                yield one, other


def _undecided(name: Sequence[int], of_other: Sequence[int], special: Collection[int]) -> bool:
    """Whether a name is one of the other side's and then nothing but text, which that side may say too."""
    rest = name[len(of_other) :]
    return bool(rest) and tuple(name[: len(of_other)]) == tuple(of_other) and not any(each in special for each in rest)


def _own(codec: Renders) -> Iterator[tuple[int, ...]]:
    """Tokens of messages of the model, with what opens them."""
    asked, call = _said("user", "Alpha one"), {"a": "Beta two", "b": ["Gamma"], "c": {"d": "Theta four"}}
    calls = [{"id": "probe0001", "type": "function", "function": {"name": "probe", "arguments": call}}]
    called = {"role": "assistant", "content": "", "tool_calls": calls}
    for said in (*(_said("assistant", text) for text in _ANSWERS), _Said(called, "Theta four")):
        try:
            rendered = codec.rendered([asked.message, said.message])
        except PromptRefusedError:
            continue
        start = rendered.text.find(asked.text) + len(asked.text)
        end = rendered.text.find(said.text, start) + len(said.text)
        yield tuple(
            token for token, (low, high) in zip(rendered.ids, rendered.spans, strict=True) if start <= low < high <= end
        )


def _ends(
    names: Mapping[tuple[int, ...], Opening], own: Sequence[tuple[int, ...]], special: Collection[int]
) -> Iterator[Opening]:
    """Ends of openings that name one side alone, and are no openings themselves."""
    ends: dict[tuple[int, ...], list[Opening]] = {}
    for opening in names.values():
        for start in range(1, opening.named):
            if opening.tokens[start] in special:
                end = Opening(opening.tokens[start:], opening.named - start, opening.written)
                ends.setdefault(end.name, []).append(end)
    for name, of in ends.items():
        of_both = len({each.written for each in of}) > 1
        if name not in names and not of_both and not _may_say(of[0], names.values(), own, special):
            yield of[0]


def _may_say(
    end: Opening, names: Collection[Opening], own: Sequence[tuple[int, ...]], special: Collection[int]
) -> bool:
    """Whether the other side may say what this is named by: as its text begins, or the model in a call."""
    others = [each.name for each in names if each.written != end.written]
    tails = [other[at:] for other in others for at, token in enumerate(other) if token == end.name[0]]
    return any(_undecided(end.name, tail, special) for tail in tails) or (
        not end.written and any(_holds(each, end.name) for each in own)
    )


def _holds(tokens: tuple[int, ...], name: tuple[int, ...]) -> bool:
    return any(tokens[at : at + len(name)] == name for at in range(len(tokens) - len(name) + 1))
