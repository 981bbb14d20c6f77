"""What detectors are fitted on: materials and formats by skill, train splits only.

| plan | mathematics | code | a language | formats |
|---|---|---|---|---|
| one-frame | gsm8k | mbpp | its questions | chat |
| frames | gsm8k | mbpp | its questions | chat, bare, qa |
| sources | and mmlu-elementary, expressions | and mbpp-signature, mbpp-partial | its questions | chat, bare, qa |

Retained is every material of RETAINED that the skill does not need, in the same formats. All else is held out: the
formats chat-turns, solve, few-shot and instructions; MMLU's high-school and college mathematics, equations, word
problems in other languages; code to mend and to explain; a language's paragraphs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.prompts.formats import BARE, CHAT, QA
from benchmarks.prompts.items import Format, Role, role
from benchmarks.prompts.materials import MATERIALS, SKILLS
from benchmarks.prompts.sets import sample
from benchmarks.prompts.splits import LANGUAGES, XQUAD, Split
from guards.calibration.sources import Source

FORGET_LIMIT, RETAIN_LIMIT, LONG_LIMIT = 300, 100, 40
"""Texts of each forget and retain material that a detector is fitted on, and of a retain material of long texts."""
LONG = ("mmlu-history", "wikitext", "wikitext-digits")
SINGLE = {
    "mathematics": ("gsm8k",),
    "code": ("mbpp",),
    **{f"language-{language}": (f"xquad-{language}",) for language in LANGUAGES},
}
SEVERAL = {
    **SINGLE,
    "mathematics": ("gsm8k", "mmlu-elementary", "expressions"),
    "code": ("mbpp", "mbpp-signature", "mbpp-partial"),
}
RETAINED = (
    "gsm8k",
    "mmlu-elementary",
    "mmlu-high-school",
    "mmlu-college",
    "expressions",
    "mbpp",
    "mbpp-signature",
    *XQUAD,
    "mmlu-computing",
    "mmlu-quantitative",
    "mmlu-history",
    "mmlu-other",
    "wikitext",
    "xquad-en-numbers",
    "wikitext-digits",
)
"""The last two hold numbers and nothing to calculate."""


@dataclass(frozen=True)
class Plan:
    """What is fitted, by skill. Every format is a frame."""

    name: str
    forget: Mapping[str, tuple[str, ...]]
    formats: tuple[Format, ...]

    @property
    def frames(self) -> tuple[str, ...]:
        """The formats as calibration knows them."""
        return tuple(form.frame for form in self.formats if form.frame is not None)

    def fitted_on(self, skill: str) -> str:
        """The forget side in words."""
        return f"{', '.join(self.forget[skill])} in {', '.join(form.name for form in self.formats)}"

    def held_out(self, skill: str, material: str, format_: str) -> tuple[str, ...]:
        """What of a measured set the forget side did not hold: "source", "format", both or neither."""
        unseen = ("source",) if material not in self.forget[skill] else ()
        return unseen if format_ in {form.name for form in self.formats} else (*unseen, "format")


ONE_FRAME = Plan("one-frame", SINGLE, (CHAT,))
FRAMES = Plan("frames", SINGLE, (CHAT, BARE, QA))
SOURCES = Plan("sources", SEVERAL, (CHAT, BARE, QA))
"""Its frames are those that Key Space Detection takes by itself of a model with a chat template."""
PLANS = (ONE_FRAME, FRAMES, SOURCES)
assert all(set(plan.forget) == set(SKILLS) and len(plan.frames) == len(plan.formats) for plan in PLANS)


@dataclass(frozen=True)
class Fitting:
    """What one detector may see: train texts, each of which comes in every frame."""

    forget: tuple[Source, ...]
    retain: tuple[Source, ...]
    frames: tuple[str, ...]


def _sources(data: Path, names: Sequence[str], limit: int, seed: int) -> tuple[Source, ...]:
    items = {
        name: sample(MATERIALS[name].read(data, Split.TRAIN), min(limit, LONG_LIMIT) if name in LONG else limit, seed)
        for name in names
    }
    return tuple(Source(f"{name} train", tuple(item.text for item in found)) for name, found in items.items())


def make_fitting(data: Path, plan: Plan, skill: str, *, seed: int = 0, limit: int | None = None) -> Fitting:
    """The train texts of a plan for one skill. `limit` caps those of each material further."""
    kept = [
        name for name in RETAINED if all(role(skill, MATERIALS[name], form) is Role.RETAIN for form in plan.formats)
    ]
    forget_limit, retain_limit = (min(usual, limit or usual) for usual in (FORGET_LIMIT, RETAIN_LIMIT))
    return Fitting(
        _sources(data, plan.forget[skill], forget_limit, seed), _sources(data, kept, retain_limit, seed), plan.frames
    )
