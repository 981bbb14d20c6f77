"""Asks models over HTTP, one server of `skillguard serve` after the other, and counts what they recall."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving import running_server
from server.engines.options import EmbeddedOptions
from server.evaluation.arms import BASELINE, Arm, engine_arms
from server.evaluation.client import TIMEOUT_SECONDS
from server.evaluation.evaluate import Evaluation, evaluate
from server.evaluation.folder import ITEMS
from server.evaluation.measures import deviation_score
from server.evaluation.options import EvaluationOptions
from server.evaluation.suites import read_suites

AUTHORS, RETAINED, PARAPHRASED = "authors", "retained", "-paraphrased"
OPTIONS = EvaluationOptions(concurrency=8)
Recalls = Mapping[str, Mapping[str, Sequence[float]]]
"""ROUGE-1 recalls of every answer, by arm and suite."""


@asynccontextmanager
async def _serve(*flags: str) -> AsyncIterator[httpx.AsyncClient]:
    with running_server(*flags, "--anonymous-role", "operator") as url:
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS) as client:
            yield client


def arms(model: Path, artifacts: Sequence[Path]) -> list[Arm]:
    """The model without a guard and with each, as servers that are started when it is their turn."""
    made = engine_arms(EmbeddedOptions(model=str(model), artifacts=tuple(artifacts)), together=False)
    flags = [["--unguarded"], *(["--artifacts", str(artifact)] for artifact in artifacts)]
    return [
        replace(arm, connect=partial(_serve, "--model", str(model), *own)) for arm, own in zip(made, flags, strict=True)
    ]


def ask(of: Sequence[Arm], suites: Mapping[str, Path], run: Path) -> tuple[Recalls, Recalls]:
    """Every suite's recalls, and which of its prompts were refused (1 or 0), of each arm; kept in the run folder.

    In an order of the questions' own, and not that in which answers came: intervals are of resampled places.
    """
    read = read_suites([f"tofu:{label}={path}" for label, path in suites.items()], [], OPTIONS)
    own = ",".join(label for label in suites if label.startswith(AUTHORS))
    named = [f"{arm.name}={own}" for arm in of if arm.name != BASELINE]
    evaluate(Evaluation(of, read, OPTIONS, named), run, plots=False)
    lines = (run / ITEMS).read_text(encoding="utf-8").splitlines()
    records = sorted(map(json.loads, lines), key=lambda each: str(each["item"]))

    def by_suite(value: Any) -> Recalls:
        return {
            arm.name: {
                label: [value(each) for each in records if (each["arm"], each["suite"]) == (arm.name, label)]
                for label in suites
            }
            for arm in of
        }

    return by_suite(lambda each: each["rouge1"]), by_suite(lambda each: float(each["guard"] is not None))


def deviation(recalls: Mapping[str, Sequence[float]], wording: str, seed: str) -> dict[str, Any]:
    """Mean recalls of the authors to be forgotten and of the others in one wording, and their Deviation Score."""
    found = deviation_score([recalls[AUTHORS + wording]], [recalls[RETAINED + wording]], f"{seed}{wording}")
    assert found is not None, "there are questions of both"
    return asdict(found)


def best(recalls: Recalls, names: Sequence[str]) -> str:
    """Of these arms the one with the least Deviation Score."""
    return min(names, key=lambda name: float(deviation(recalls[name], "", name)["score"]["value"]))
