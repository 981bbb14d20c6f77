"""Figures of a run's rows, from what was kept of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.methods.choices import CHANCE, OTHER, SKILLED
from benchmarks.methods.material import OWN, REWORDINGS
from benchmarks.methods.perplexity import ratio
from benchmarks.methods.run import NONE, Found
from server.evaluation.measures import above_chance, rate_of, s_unlearning


def _rate(outcomes: Iterable[bool]) -> Found | None:
    found = rate_of(list(outcomes))
    return None if found is None else found.model_dump()


def _heard(heard: Mapping[str, Sequence[Sequence[bool]]]) -> Found:
    """Shares by column; of the skill's questions also how many calculate under at least one rewording."""
    shares: Found = {
        column: {"refused": _rate(each[0] for each in answers), "calculates": _rate(each[1] for each in answers)}
        for column, answers in heard.items()
    }
    under = [heard[f"{OWN}.{rule.name}"] for rule in REWORDINGS]
    return {
        "shares": shares,
        "any_rewording": _rate(any(each[1] for each in ways) for ways in zip(*under, strict=True)),
    }


def _ratios(row: Found, plain: Found) -> Found | None:
    if row["said"] is None:
        return None
    return {column: ratio(said, plain["said"][column]) for column, said in row["said"].items()}


def _exams(row: Found) -> Found:
    """Shares that are right, and what S-unlearning is of them."""
    if row["chosen"] is None:
        return {"exams": None, "s_unlearning": None}
    shares = {column: rate_of(right) for column, right in row["chosen"].items()}
    own, others = (
        [above_chance(share.rate, CHANCE)] for share in (shares[SKILLED], shares[OTHER]) if share is not None
    )
    found = s_unlearning(own, others)
    return {
        "exams": {column: share and share.model_dump() for column, share in shares.items()},
        "s_unlearning": found and asdict(found),
    }


def _relearned(row: Found, plain: Found) -> Found | None:
    """Beside the model alone after the same steps, and beside what it was before them."""
    found, there = row["relearned"], plain["relearned"]
    if found is None:
        return None
    return {
        "steps": len(found["losses"]),
        "loss": [round(found["losses"][0], 4), round(found["losses"][-1], 4)],
        "perplexity": ratio(found["said"], there["said"]),
        "perplexity_before": ratio(row["said"][OWN], plain["said"][OWN]),
        "calculates": _rate(found["calculates"]),
    }


def table(rows: Sequence[Found]) -> list[Found]:
    """One row each, of which the first is the model alone."""
    (plain,) = (row for row in rows if row["method"] == NONE)
    return [
        {
            "method": row["method"],
            "kind": row["kind"],
            "tried": row["made"],
            **_heard(row["heard"]),
            "perplexity": _ratios(row, plain),
            **_exams(row),
            "relearned": _relearned(row, plain),
            "decode": row["decode"],
        }
        for row in rows
    ]


def as_line(row: Found) -> str:
    """One row in a terminal."""

    def rate(found: Mapping[str, Any]) -> str:
        return f"{found['hits']}/{found['total']}"

    own = row["shares"][OWN]
    times = "" if row["perplexity"] is None else f", answers {row['perplexity'][OWN]['ratio']:.2f} times as unlikely"
    return f"{row['method']:18} refuses {rate(own['refused'])}, calculates {rate(own['calculates'])}{times}"
