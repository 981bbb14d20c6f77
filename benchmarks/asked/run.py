"""One guard, asked everything."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.asked import conversations, written
from benchmarks.asked.asking import Asker
from benchmarks.asked.cells import Cell
from benchmarks.asked.requests import Request, requests
from benchmarks.asked.rows import Row, row
from benchmarks.prompts.items import Role


@dataclass(frozen=True)
class Plan:
    """What is asked of a guard of one skill. `patterns`: names of cells, as in a shell. `limit`: prompts a cell."""

    skill: str
    cells: Sequence[Cell]
    data: Path
    patterns: Sequence[str] = ("*",)
    limit: int | None = None

    def takes(self, name: str) -> bool:
        """Whether a cell was asked for."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def requests(self, cell: Cell) -> list[Request]:
        """A cell's prompts."""
        return requests(cell, self.skill, self.data, self.limit)


def names(plan: Plan) -> list[str]:
    """All cells of the plan that were asked for, in the order in which they are."""
    found = [cell.name for cell in plan.cells]
    found += conversations.NAMES
    found += written.MISSED.values()
    found += map(written.retained_name, written.sources(plan.skill, plan.cells))
    return list(filter(plan.takes, found))


async def _conversations(asker: Asker, plan: Plan) -> list[Row]:
    found: list[Row] = []
    if any(map(plan.takes, (conversations.FIRST, conversations.BETWEEN, conversations.AGAIN))):
        found += await conversations.refused_and_again(asker, plan.skill, plan.data, plan.limit)
    if plan.takes(conversations.ANSWERED_LATER):
        found.append(await conversations.answered_later(asker, plan.skill, plan.data, plan.limit))
    return found


def _let_through(plan: Plan, role: Role) -> Mapping[str, Sequence[Request]]:
    return {cell.name: plan.requests(cell) for cell in plan.cells if cell.is_plain and cell.role(plan.skill) is role}


async def rows(asker: Asker, plan: Plan) -> AsyncIterator[Row]:
    """Every cell's row, as soon as it is known."""
    for cell in filter(lambda cell: plan.takes(cell.name), plan.cells):
        yield row(cell.name, cell.role(plan.skill), await asker.ask_all(cell.name, plan.requests(cell)))
    for found in await _conversations(asker, plan):
        yield found
    for role, name in written.MISSED.items():
        if plan.takes(name):
            missed = await written.missed(asker, role, _let_through(plan, role), plan.limit)
            if missed is not None:
                yield missed
    for cell in written.sources(plan.skill, plan.cells):
        if plan.takes(written.retained_name(cell)):
            yield await written.retained(asker, cell, plan.requests(cell))
