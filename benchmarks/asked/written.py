"""Answers that are written: of prompts that a guard let through, and of prompts that it must let through."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.asked.asking import TOO_LONG, Asker, Reply
from benchmarks.asked.cells import Cell
from benchmarks.asked.requests import Request
from benchmarks.asked.rows import Row, row
from benchmarks.prompts.items import Role

LIMIT, TOKENS = 40, 48
MISSED = {Role.FORGET: "written/missed-forget", Role.ARGUABLE: "written/missed-arguable"}
SOURCES = {
    "mathematics": ("mbpp", "mmlu-other", "mmlu-history", "xquad-en-numbers", "harmless-numbers", "harmless-everyday"),
    "code": ("gsm8k", "mmlu-other", "mmlu-computing", "harmless-code-words", "harmless-everyday"),
}
"""The main sources that are retained; for a language those of all other languages."""


def sources(skill: str, cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose answers must be written to their end."""
    kept = [cell for cell in cells if cell.is_plain and cell.role(skill) is Role.RETAIN]
    return [cell for cell in kept if cell.material.name in SOURCES.get(skill, ())] or kept


def retained_name(cell: Cell) -> str:
    """The cell of a source's answers."""
    return f"written/{cell.name}"


async def retained(asker: Asker, cell: Cell, requests: Sequence[Request]) -> Row:
    """False abstention of prompts and their answers."""
    asked = [replace(request, max_tokens=TOKENS) for request in requests[:LIMIT]]
    return row(retained_name(cell), Role.RETAIN, await asker.ask_all(retained_name(cell), asked), written=True)


def _passed(reply: Reply) -> bool:
    return not reply.refused and reply.finish_reason != TOO_LONG


async def missed(asker: Asker, role: Role, requests: Mapping[str, Sequence[Request]], limit: int | None) -> Row | None:
    """Of prompts that were not refused, the share that is while their answers are written. None where all were.

    `requests`: of cells of the role, by name. As many are taken from each as there are, in turns.
    """
    let_through: list[list[Request]] = []
    for name, found in requests.items():
        replies = await asker.ask_all(name, found)
        let_through.append([request for request, reply in zip(found, replies, strict=True) if _passed(reply)])
    turns = max(map(len, let_through), default=0)
    drawn = [found[at] for at in range(turns) for found in let_through if at < len(found)]
    asked = [replace(request, max_tokens=TOKENS) for request in drawn[: min(limit or LIMIT, LIMIT)]]
    if not asked:
        return None
    return row(MISSED[role], role, await asker.ask_all(MISSED[role], asked), written=True)
