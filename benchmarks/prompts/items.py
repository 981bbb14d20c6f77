"""What prompt sets are made of: texts of one kind (a material) and what is put around them (a format)."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from benchmarks.prompts.splits import Split
from guards.calibration.activations import TokenIds
from guards.model.encoding import TextCodec
from guards.model.frames import BARE_FRAME, CHAT_FRAME, frame_text

NONE: frozenset[str] = frozenset()


class Role(StrEnum):
    """What a set of prompts is to a guard of one skill."""

    FORGET = "forget"
    RETAIN = "retain"
    ARGUABLE = "arguable"
    """Needs the skill in part (physics for mathematics; English around a Spanish question for English): it is
    measured and listed, and counts neither as recall nor as false abstention."""


@dataclass(frozen=True)
class Item:
    """One text. `answer` is what a worked example would show, None where the text asks nothing."""

    text: str
    answer: str | None = None


@dataclass(frozen=True)
class Material:
    """Texts of one kind. `read` gives one side of them; no text is on both sides.

    `skills`: those that every text needs. `arguable`: those that some texts may need. `splits`: the sides it has; of
    what was written to be measured alone, the test side.
    """

    name: str
    read: Callable[[Path, Split], Sequence[Item]]
    skills: frozenset[str] = NONE
    arguable: frozenset[str] = NONE
    splits: frozenset[Split] = frozenset(Split)


@dataclass(frozen=True)
class Around:
    """What a format may draw on for one text. `shots`: train items of the same material, without the text itself.

    `others`: items of the materials that the format needs, of the text's own split.
    """

    rng: random.Random
    shots: Sequence[Item]
    others: Mapping[str, Sequence[Item]]


@dataclass(frozen=True)
class Format:
    """What is put around a text, or done to it.

    A rendered text is asked as users ask a chat model, as a user's message in the chat template. A format that is a
    frame beside the template is asked as it is. `frame`: the format as calibration knows it ("chat", "bare" or a
    template with {text}), None where it is none of its own. `earlier`: messages before the text's. `shots`: worked
    examples that `render` takes. `needs`: materials that it draws other texts from. `skills` and `arguable`: what its
    own words need, as in a material.
    """

    name: str
    render: Callable[[Item, Around], str]
    frame: str | None = None
    earlier: tuple[Mapping[str, str], ...] = ()
    shots: int = 0
    needs: tuple[str, ...] = ()
    skills: frozenset[str] = NONE
    arguable: frozenset[str] = NONE

    def encode(self, codec: TextCodec, prompt: str) -> TokenIds:
        """A rendered text as the model reads it. Raises PromptRefusedError where it lacks a chat template."""
        if self.frame not in (None, CHAT_FRAME):
            return codec.encode_text(prompt)
        return codec.encode_chat([*self.earlier, {"role": "user", "content": prompt}])


def framed(name: str, frame: str) -> Format:
    """A format that is a frame and nothing else."""
    inside = BARE_FRAME if frame == CHAT_FRAME else frame
    return Format(name, lambda item, _: frame_text(inside, item.text), frame)


def worded(name: str, template: str, *, arguable: frozenset[str] = NONE) -> Format:
    """Words around the text, inside the user's message."""
    return Format(name, lambda item, _: template.replace("{text}", item.text), arguable=arguable)


def role(skill: str, material: Material, format_: Format) -> Role:
    """What the material in the format is to a guard of the skill."""
    if skill in material.skills | format_.skills:
        return Role.FORGET
    return Role.ARGUABLE if skill in material.arguable | format_.arguable else Role.RETAIN
