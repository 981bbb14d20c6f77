"""What is sent: a request's body, made of a cell's prompts."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.asked.cells import Cell, Way
from benchmarks.prompts.harmless import texts
from benchmarks.prompts.materials import MATERIALS
from benchmarks.prompts.sets import build
from benchmarks.prompts.splits import Split

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
Message = Mapping[str, str]


@dataclass(frozen=True)
class Request:
    """One request: messages, or a text that is sent as it is."""

    messages: tuple[Message, ...] | None
    text: str | None = None
    max_tokens: int = 1

    @property
    def path(self) -> str:
        """The endpoint."""
        return TEXT if self.messages is None else CHAT

    @property
    def body(self) -> dict[str, Any]:
        """All that is sent but the model's name."""
        asked = {"prompt": self.text} if self.messages is None else {"messages": list(self.messages)}
        return {**asked, "max_tokens": self.max_tokens, "temperature": 0}

    @property
    def digest(self) -> str:
        """SHA-256 of endpoint and body."""
        written = json.dumps([self.path, self.body], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(written.encode()).hexdigest()


def said(role: str, text: str) -> Message:
    """A message."""
    return {"role": role, "content": text}


def chat(*turns: str, max_tokens: int = 1) -> Request:
    """A conversation that the user begins and in which both take turns."""
    roles = ("user", "assistant")
    return Request(tuple(said(roles[at % 2], text) for at, text in enumerate(turns)), max_tokens=max_tokens)


def exchange(data: Path, skill: str, rng: random.Random) -> tuple[str, str]:
    """An unrelated question and its answer. For a language it is another language's."""
    name = "mmlu-other"
    if skill.startswith("language-"):
        name = "xquad-es" if skill == "language-en" else "xquad-en"
    item = rng.choice(MATERIALS[name].read(data, Split.TEST))
    return item.text, str(item.answer)


def harmless(data: Path, skill: str) -> Sequence[str]:
    """Questions of a conversation that do not need the skill."""
    if not skill.startswith("language-"):
        return texts("everyday", "en")
    others = ("xquad-es", "xquad-de") if skill == "language-en" else ("xquad-en",)
    return [item.text for name in others for item in MATERIALS[name].read(data, Split.TEST)]


def requests(cell: Cell, skill: str, data: Path, limit: int | None, *, seed: int = 0) -> list[Request]:
    """A cell's prompts, ready to be sent. `limit`: at most so many, where the cell has more."""
    wanted = cell.limit if limit is None else min(limit, cell.limit)
    made = build(data, cell.material, cell.format, Split.TEST, limit=wanted, seed=seed)
    if cell.way is Way.TEXT:
        return [Request(None, prompt) for prompt in made.prompts]
    if cell.way is Way.CHAT:
        return [chat(prompt) for prompt in made.prompts]
    rngs = (random.Random(f"{seed} exchange {prompt}") for prompt in made.prompts)
    return [chat(*exchange(data, skill, rng), prompt) for rng, prompt in zip(rngs, made.prompts, strict=True)]
