"""The table's rows as people read them: sheets for a terminal and for Markdown, and what falls short of the goals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.real_text.heldout import ANSWERS
from benchmarks.real_text.rows import POOLED, Row
from benchmarks.real_text.skills import SKILLS, Meaning
from server.evaluation.figures import LANGUAGES
from server.evaluation.tables import markdown_table, number

RECALL, FALSE_ABSTENTION, AUROC = 0.98, 0.005, 0.999
"""Goals for mathematics and code, false abstention and AUROC over all other sets together."""
DIAGONAL, OFF_DIAGONAL = 0.97, 0.01
"""Goals for the matrix of languages."""


@dataclass(frozen=True)
class Sheet:
    """A titled table of text."""

    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]

    def show(self, console: Console) -> None:
        """To a terminal."""
        table = Table(*self.head, title=self.title, title_justify="left")
        for line in self.lines:
            table.add_row(*line)
        console.print(table)

    @property
    def markdown(self) -> str:
        """For documents."""
        return f"**{self.title}**\n\n{markdown_table(self.head, self.lines)}\n"


def interval(row: Row) -> str:
    """A share with its exact 95 % interval."""
    return f"{row['hits'] / row['examples']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _of(rows: Sequence[Row], forget: str, *meanings: Meaning) -> list[Row]:
    return [r for r in rows if r["forget"] == forget and r["meaning"] in meanings and r["test"] != POOLED]


def _pooled(rows: Sequence[Row], forget: str) -> Row:
    (found,) = (row for row in rows if row["forget"] == forget and row["test"] == POOLED)
    return found


def summary_sheet(title: str, rows: Sequence[Row]) -> Sheet:
    """A line for every guard that was calibrated."""
    lines = []
    for forget in dict.fromkeys(row["forget"] for row in rows):
        (own,) = _of(rows, forget, Meaning.OWN)
        others, together = _of(rows, forget, Meaning.OTHER), _pooled(rows, forget)
        transfer = [f"{interval(row)} {row['test']}" for row in _of(rows, forget, Meaning.TRANSFER)]
        worst = max(others, key=lambda row: float(row["false_abstention"]))
        lowest = min(others, key=lambda row: float(row["auroc"]))
        lines.append(
            (
                forget,
                interval(own),
                f"{together['false_abstention']:.4f} of {together['examples']}",
                f"{worst['false_abstention']:.3f} {worst['test']}",
                f"{together['auroc']:.4f}",
                f"{lowest['auroc']:.4f} {lowest['test']}",
                ", ".join(transfer) or "-",
            )
        )
    head = ("forget", "recall [95 %]", "false abstention", "worst set", "AUROC", "lowest AUROC", "other wordings")
    return Sheet(title, head, tuple(lines))


def matrix(rows: Sequence[Row]) -> list[list[float]]:
    """Shares refused, rows the language unlearned and columns the one asked in, in ESU's order; NaN without a guard."""
    shares = {(row["forget"], row["test"]): row["hits"] / row["examples"] for row in rows}
    return [
        [shares.get((f"language-{unlearned}", f"xquad-{asked}"), float("nan")) for asked in LANGUAGES]
        for unlearned in LANGUAGES
    ]


def matrix_sheet(title: str, rows: Sequence[Row]) -> Sheet:
    """The matrix as a table."""
    lines = [
        (unlearned, *("-" if share != share else f"{share:.3f}" for share in line))
        for unlearned, line in zip(LANGUAGES, matrix(rows), strict=True)
    ]
    return Sheet(title, ("unlearned", *LANGUAGES), tuple(lines))


def heldout_sheet(title: str, rows: Sequence[Row]) -> Sheet:
    """Next-token accuracy behind every guard over that without, columns data sets."""
    cells = {(row["forget"], row["test"]): number(row["relative_accuracy"]) for row in rows}
    names = [skill.name for skill in SKILLS if any(forget == skill.name for forget, _ in cells)]
    lines = [(name, *(cells.get((name, test), "-") for test in ANSWERS)) for name in names]
    return Sheet(title, ("forget", *ANSWERS), tuple(lines))


def shortfalls(rows: Sequence[Row]) -> Iterator[str]:
    """Every goal that is missed, with what was got and wanted."""
    for forget in ("mathematics", "code"):
        own = _of(rows, forget, Meaning.OWN)
        if not own:
            yield f"{forget}: no guard"
            continue
        together = _pooled(rows, forget)
        if own[0]["recall"] < RECALL:
            yield f"{forget}: recall {interval(own[0])}, wanted {RECALL}"
        if together["false_abstention"] > FALSE_ABSTENTION:
            yield f"{forget}: false abstention {interval(together)}, wanted {FALSE_ABSTENTION}"
        if together["auroc"] < AUROC:
            yield f"{forget}: AUROC {together['auroc']:.4f}, wanted {AUROC}"
    for unlearned, line in zip(LANGUAGES, matrix(rows), strict=True):
        for asked, share in zip(LANGUAGES, line, strict=True):
            if asked == unlearned and not share >= DIAGONAL:
                yield f"language-{unlearned}: recall {share:.3f}, wanted {DIAGONAL}"
            if asked != unlearned and not share <= OFF_DIAGONAL:
                yield f"language-{unlearned}: refuses {share:.3f} of {asked}, wanted {OFF_DIAGONAL}"
