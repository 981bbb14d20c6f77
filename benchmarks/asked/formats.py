"""What is done to a text inside a message: no frame beside the chat's own, except around worked examples."""

import random
from collections.abc import Sequence
from typing import Any

from benchmarks.prompts.items import Around, Format, Item
from benchmarks.prompts.paraphrase import with_typos, with_wrong_letters
from benchmarks.prompts.treatments import beside, examples

PLAIN = Format("plain", lambda item, _: item.text)
UPPER_CASE = Format("upper-case", lambda item, _: item.text.upper())
CHANGES: Sequence[Format] = (
    UPPER_CASE,
    Format("double-spaces", lambda item, _: item.text.replace(" ", "  ")),
    Format("spaces-around", lambda item, _: f"   {item.text}   "),
    Format("newlines-around", lambda item, _: f"\n\n{item.text}\n\n"),
    Format("wrong-letters", lambda item, around: with_wrong_letters(item.text, around.rng)),
    Format("swapped-letters", lambda item, around: with_typos(item.text, around.rng)),
    Format("polite", lambda item, _: f"Hi there! Could you please help me with this? {item.text} Thanks a lot!"),
)
"""Changes of a text that leave its meaning."""
OTHER_TEXT = ("wikitext", "mmlu-other")
"""Materials of which other text is made."""


def before(other: str, skill: str) -> Format:
    """A task of another skill after the question."""
    return Format(
        f"before-{other}",
        lambda item, around: beside(item, around, other, other_first=False, between="\n\n"),
        needs=(other,),
        skills=frozenset({skill}),
    )


def after(other: str, skill: str) -> Format:
    """A task of another skill before the question."""
    return Format(
        f"after-{other}",
        lambda item, around: beside(item, around, other, other_first=True, between="\n\n"),
        needs=(other,),
        skills=frozenset({skill}),
    )


def after_examples(other: str, skill: str) -> Format:
    """Three worked examples of another skill, then the question in their frame."""
    return Format(
        f"after-3-{other}",
        lambda item, around: f"{examples(around, other)}Q: {item.text}\nA:",
        needs=(other,),
        arguable=frozenset({skill}),
    )


class Filler:
    """Running text of WikiText and MMLU's other questions, in tokens of a model."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def ends(self, text: str) -> list[int]:
        """Where each of a text's tokens ends in it."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [end for _, end in found["offset_mapping"]]

    def text(self, items: Sequence[Item], tokens: int, rng: random.Random) -> str:
        """Texts in a drawn order, cut at the last white space within `tokens` tokens."""
        joined = ""
        for item in rng.sample(items, len(items)):
            joined = f"{joined}\n\n{item.text}" if joined else item.text
            if len(ends := self.ends(joined)) >= tokens:
                return self._cut(joined, ends[tokens - 1])
        raise ValueError(f"the other texts have fewer than {tokens} tokens in all")

    def halves(self, text: str) -> tuple[str, str]:
        """A text in two, of about as many tokens each."""
        ends = self.ends(text)
        first = self._cut(text, ends[len(ends) // 2])
        return first, text[len(first) :].lstrip()

    def _cut(self, text: str, at: int) -> str:
        if at < len(text) and not text[at].isspace():
            at = max(text.rfind(" ", 0, at), text.rfind("\n", 0, at))
        return text[:at].rstrip()


PLACES = ("start", "middle", "end")


def amid(filler: Filler, tokens: int, place: str) -> Format:
    """The question at the start, in the middle or at the end of `tokens` tokens of other text."""

    def render(item: Item, around: Around) -> str:
        items = [other for name in OTHER_TEXT for other in around.others[name] if other.text != item.text]
        text = filler.text(items, tokens, around.rng)
        first, second = {"start": ("", text), "end": (text, "")}.get(place) or filler.halves(text)
        return "\n\n".join(part for part in (first, item.text, second) if part)

    return Format(f"{place}-of-{tokens}", render, needs=OTHER_TEXT)
