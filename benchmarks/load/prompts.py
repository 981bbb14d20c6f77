"""What is asked: short and long prompts without a forgotten skill, and some with it, shuffled by a seed."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.prompts import harmless
from benchmarks.serving import ROOT
from guards.calibration.sources import read_source

HARMLESS, LONG, FORGOTTEN = "harmless", "long", "forgotten"
SHARES = {HARMLESS: 0.6, LONG: 0.2, FORGOTTEN: 0.2}
"""Of a mixed load."""
_JOINED = 8
"""Requests that make a long prompt."""
_TOGETHER = 20
_DEMO = ROOT / "artifacts" / "demo" / "data"


@dataclass(frozen=True)
class Prompt:
    """A user's message, and how long its answer may be."""

    kind: str
    text: str
    max_tokens: int


def _demo() -> tuple[list[str], list[str]]:
    def read(skill: str) -> list[str]:
        return list(read_source(str(_DEMO / f"{skill}.test.jsonl")).texts)

    return read("facts"), read("mathematics")


def _written() -> tuple[list[str], list[str]]:
    return [text for kind in harmless.KINDS for text in harmless.texts(kind, "en")], _demo()[1]


SOURCES: dict[str, Callable[[], tuple[list[str], list[str]]]] = {"demo": _demo, "written": _written}
"""Texts without the skill and texts with it: of the demo's own skills, or for models that know the world."""


def mixed(source: str, shares: Mapping[str, float], max_tokens: int, seed: int = 0) -> Iterator[Prompt]:
    """Endless prompts, the same for a seed; every twenty hold each kind's share."""
    plain, forgotten = SOURCES[source]()
    rng = random.Random(seed)
    kinds = [kind for kind, share in shares.items() for _ in range(round(share * _TOGETHER))]
    while True:
        rng.shuffle(kinds)
        yield from (Prompt(kind, _text(kind, plain, forgotten, rng), max_tokens) for kind in kinds)


def _text(kind: str, plain: Sequence[str], forgotten: Sequence[str], rng: random.Random) -> str:
    if kind == FORGOTTEN:
        return rng.choice(forgotten)
    return " ".join(rng.choices(plain, k=_JOINED if kind == LONG else 1))
