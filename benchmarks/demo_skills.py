"""What each demo guard forgets and what it keeps: exact match on held-out prompts of every skill, over HTTP.

    python -m benchmarks.demo_skills [--skills mathematics code ...] [--guards ksd-mathematics ...] [--limit N]

One server per guard, and one without any, is asked every prompt greedily through /v1/chat/completions. `relative` is
exact match with the guard over exact match without, with a paired bootstrap interval over prompts.
"""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from artifacts.demo.build.files import read_rows
from artifacts.demo.build.rows import SKILLS, Row, exact_match
from benchmarks.report import publish
from benchmarks.serving import running_server
from guards.calibration.statistics import clopper_pearson

DEMO = Path(__file__).resolve().parent.parent / "artifacts" / "demo"
CONCURRENCY = 24
RESAMPLES = 2000
NO_GUARD = "none"


async def ask_all(url: str, rows: Sequence[Row]) -> list[bool]:
    """Whether each prompt's answer is the expected one; an abstention is not."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def ask(client: httpx.AsyncClient, row: Row) -> bool:
        async with gate:
            response = await client.post(
                "/v1/chat/completions",
                json={
                    "model": "skillguard-demo",
                    "messages": [{"role": "user", "content": row.prompt}],
                    "temperature": 0,
                    "max_tokens": 160,
                },
            )
        response.raise_for_status()
        choice = response.json()["choices"][0]
        return choice["finish_reason"] == "stop" and exact_match(choice["message"]["content"], row.answer)

    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        return list(await asyncio.gather(*(ask(client, row) for row in rows)))


def relative_interval(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float]:
    """95 % paired bootstrap interval of the ratio of exact matches."""
    pairs = np.array([before, after], dtype=float)
    drawn = np.random.default_rng(0).integers(0, pairs.shape[1], (RESAMPLES, pairs.shape[1]))
    sums = pairs[:, drawn].sum(axis=2)
    ratios = sums[1] / np.maximum(sums[0], 1)
    return float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))


def measure(guard: str, skills: Sequence[str], limit: int | None) -> dict[str, list[bool]]:
    """Runs one server and asks it everything."""
    arguments = ["--unguarded"] if guard == NO_GUARD else ["--artifacts", str(DEMO / "guards" / guard)]
    rows = {skill: read_rows(DEMO / "data" / f"{skill}.test.jsonl")[:limit] for skill in skills}
    with running_server(*arguments) as url:
        return {skill: asyncio.run(ask_all(url, rows[skill])) for skill in skills}


def main() -> None:
    known = sorted(path.name for path in (DEMO / "guards").iterdir() if path.is_dir())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skills", nargs="+", choices=SKILLS, default=list(SKILLS))
    parser.add_argument("--guards", nargs="+", choices=known, default=known)
    parser.add_argument("--limit", type=int, help="prompts per skill (default: all)")
    args = parser.parse_args()
    baseline = measure(NO_GUARD, args.skills, args.limit)
    rows = []
    table = Table(title="exact match [95 % interval], relative to no guard [95 % interval]", title_justify="left")
    for column in ("guard", "skill", "n", "exact match", "relative"):
        table.add_column(column)
    for guard in [NO_GUARD, *args.guards]:
        found = baseline if guard == NO_GUARD else measure(guard, args.skills, args.limit)
        for skill in args.skills:
            hits, total = sum(found[skill]), len(found[skill])
            low, high = clopper_pearson(hits, total)
            relative = hits / max(sum(baseline[skill]), 1)
            bounds = relative_interval(baseline[skill], found[skill])
            rows.append(
                {
                    "guard": guard,
                    "skill": skill,
                    "n": total,
                    "exact_match": round(hits / total, 4),
                    "exact_match_interval": [round(low, 4), round(high, 4)],
                    "relative": round(relative, 4),
                    "relative_interval": [round(bound, 4) for bound in bounds],
                }
            )
            table.add_row(
                guard,
                skill,
                str(total),
                f"{hits / total:.3f} [{low:.3f}, {high:.3f}]",
                f"{relative:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]",
            )
        table.add_section()
    Console(width=110).print(table)
    publish("demo_skills", rows)


if __name__ == "__main__":
    main()
