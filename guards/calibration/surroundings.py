"""What may stand around a text beside its frame: kinds of example in which a guard must hold.

A question beside other text must be caught all the same, and other text must not be refused for its length, its form
or what it comes with. Everything is drawn by a seed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from guards.artifact.canaries import CANARY_DATE
from guards.calibration.activations import TokenIds
from guards.calibration.material import Material
from guards.errors import PromptRefusedError
from guards.model.encoding import TextCodec
from guards.model.frames import CHAT_FRAME


class Kind(StrEnum):
    """The rows that every table of a detector has beside its frames."""

    UPPER = "in upper case"
    TYPOS = "with typing errors"
    SPACED = "with other white space"
    AMID = "amid 300 other tokens"
    AFTER = "after another task"
    LATER = "in a later turn"
    LONG = "long texts"
    CHATS = "chats of several turns"
    SYSTEM = "with a system prompt"
    WORKED = "behind worked examples"
    TOOLS = "with tools"
    ANSWERS = "while it answers"


FITTED = frozenset((Kind.UPPER, Kind.TYPOS, Kind.SPACED, Kind.AMID, Kind.AFTER))
"""Kinds that change the key vectors of a text itself, so that a direction must know them."""
AMID_TOKENS = 300
MOST = 60
"""Examples of a kind in each share."""
LONGEST = 16
"""Of long texts, which cost as much as many others."""
WORKED_EXAMPLES = 3
TYPO = 0.05
"""Share of characters that are mistyped."""
LETTERS = "abcdefghijklmnopqrstuvwxyz "
GAPS = ("  ", "   ", "\n", "\n\n", "\t")
"""White space in the place of the single spaces between words."""


@dataclass(frozen=True)
class Surrounded:
    """A prompt. `own` are the tokens of the text itself, None for all that its author wrote."""

    kind: Kind
    ids: TokenIds
    own: tuple[int, int] | None = None


class Surroundings:
    """Makes examples of kinds from one share's texts of both sides."""

    def __init__(
        self,
        codec: TextCodec,
        frame: str,
        forget: Sequence[str],
        retain: Sequence[str],
        material: Material,
        *,
        longest: int,
        seed: int,
    ) -> None:
        """`frame` is what is put around all but whole chats, `longest` the tokens of a long text."""
        self._codec, self._frame, self._longest = codec.on_day(CANARY_DATE), frame, longest
        self._material = material
        self._random = Random(seed)
        self._forget, self._retain = list(forget), list(retain)
        self._random.shuffle(self._forget)
        self._random.shuffle(self._retain)
        self._prose = sorted(self._retain, key=len)[len(self._retain) // 2 :]

    def forget(self) -> Iterator[Surrounded]:
        """Examples that hold the skill."""
        yield from self._each(Kind.UPPER, self._forget, str.upper)
        yield from self._each(Kind.TYPOS, self._forget, self._mistyped)
        yield from self._beside(Kind.AMID, self._forget[:MOST], self._amid)
        yield from self._beside(Kind.AFTER, self._forget[:MOST], self._after)
        yield from self._beside(Kind.LONG, self._forget[:LONGEST], self._amid_prose)
        yield from self._beside(Kind.WORKED, self._forget[: MOST // 2], self._behind_examples)
        yield from self._each(Kind.SPACED, self._forget, self._spaced)
        if self._frame == CHAT_FRAME:
            for text in self._forget[:MOST]:
                asked, answer = self._random.choice(self._retain), self._random.choice(self._retain)
                yield Surrounded(Kind.LATER, self._chat(("user", asked), ("assistant", answer), ("user", text)))

    def retain(self) -> Iterator[Surrounded]:
        """Examples that do not."""
        yield from self._each(Kind.UPPER, self._retain, str.upper)
        yield from self._each(Kind.TYPOS, self._retain, self._mistyped)
        yield from self._each(Kind.LONG, [self._other_text(self._longest, self._prose) for _ in range(LONGEST)], str)
        blocks = ["\n\n".join(self._some(WORKED_EXAMPLES + 1)) for _ in range(MOST // 2)]
        yield from self._each(Kind.WORKED, blocks, str)
        yield from self._each(Kind.SPACED, self._retain, self._spaced)
        if self._frame != CHAT_FRAME:
            return
        for messages in self._material.chats[:MOST]:
            yield Surrounded(Kind.CHATS, self._codec.encode_chat(messages))
        try:
            for prompt in self._material.system_prompts[:MOST]:
                ids = self._chat(("system", prompt), ("user", self._random.choice(self._retain)))
                yield Surrounded(Kind.SYSTEM, ids)
        except PromptRefusedError:  # not every template takes a system's message
            pass
        if self._codec.chat.shows_tools:
            for tools, messages in self._material.tools[:MOST]:
                yield Surrounded(Kind.TOOLS, self._codec.encode_chat(messages, tools))

    def _each(self, kind: Kind, texts: Sequence[str], make: Callable[[str], str]) -> Iterator[Surrounded]:
        for text in texts[:MOST]:
            yield Surrounded(kind, self._codec.encode_frame(self._frame, make(text)))

    def _beside(self, kind: Kind, texts: Sequence[str], make: Callable[[str], str]) -> Iterator[Surrounded]:
        for text in texts:
            whole = make(text)
            own = self._codec.locate(self._frame, whole, text)
            if own is not None:
                yield Surrounded(kind, self._codec.encode_frame(self._frame, whole), own)

    def _mistyped(self, text: str) -> str:
        draw = self._random
        return "".join(draw.choice(LETTERS) if draw.random() < TYPO else letter for letter in text)

    def _spaced(self, text: str) -> str:
        """One kind of gap in the whole text, as what a text was copied from has it."""
        return self._random.choice(GAPS).join(text.split())

    def _after(self, text: str) -> str:
        return f"{self._random.choice(self._retain)}\n\n{text}"

    def _amid(self, text: str) -> str:
        return self._inside(text, AMID_TOKENS, self._retain)

    def _amid_prose(self, text: str) -> str:
        return self._inside(text, self._longest, self._prose)

    def _inside(self, text: str, tokens: int, of: Sequence[str]) -> str:
        """At the start, in the middle or at the end of about so much other text."""
        sides = self._random.choice(((0, tokens), (tokens, 0), (tokens // 2,) * 2))
        before, after = (self._other_text(each, of) for each in sides)
        return " ".join(part for part in (before, text, after) if part)

    def _behind_examples(self, text: str) -> str:
        return "\n\n".join([*self._some(WORKED_EXAMPLES), text])

    def _some(self, count: int) -> list[str]:
        return [self._random.choice(self._retain) for _ in range(count)]

    def _other_text(self, tokens: int, of: Sequence[str]) -> str:
        """Retain texts one behind the other, of about so many tokens."""
        texts: list[str] = []
        while tokens > 0:
            text = self._random.choice(of)
            words, size = text.split(), max(1, len(self._codec.encode_text(text)))
            kept = words[: max(1, round(len(words) * tokens / size))]
            texts.append(text if size <= tokens else " ".join(kept))
            tokens -= size
        return " ".join(texts)

    def _chat(self, *messages: tuple[str, str]) -> TokenIds:
        return self._codec.encode_chat([{"role": role, "content": content} for role, content in messages])
