"""Suites, arms and records small enough to work out by hand."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from guards.calibration.data_rows import DataRow
from server.engines.base import GuardInfo
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from server.evaluation.arms import BASELINE, Arm, ArmGuard
from server.evaluation.options import EvaluationOptions
from server.evaluation.suites import Suite, read_suites
from tests.server.harness import MODEL, serving

SUMS = [("1+1", "2"), ("2+2", "4"), ("3+3", "6")]
WORDS = [("cat", "gato"), ("dog", "perro")]


def row(**values: Any) -> DataRow:
    return DataRow("here:1", values)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows), encoding="utf-8")
    return path


def suites(folder: Path, options: EvaluationOptions) -> list[Suite]:
    """Three sums and two words."""
    specs = []
    for name, pairs in (("sums", SUMS), ("words", WORDS)):
        path = write_jsonl(folder / f"{name}.jsonl", [{"prompt": p, "answer": a} for p, a in pairs])
        specs.append(f"prompts={path}")
    return read_suites(specs, [], options)


def engine(*withheld: str, max_model_tokens: int = 4096) -> ScriptedEngine:
    """Knows every answer but one word; its guard withholds what holds one of the texts."""
    of: tuple[GuardInfo, ...] = (guard("ksd-sums", "sums"),) if withheld else ()
    scripts = [
        Script(abstention(hit(of[0])), when=lambda prompt, text=text: text in prompt)  # type: ignore[misc]
        for text in withheld
    ]
    for prompt, said in [*SUMS, ("cat", "gato"), ("dog", "gato")]:
        scripts.append(Script(answer(said), when=lambda text, prompt=prompt: prompt in text))  # type: ignore[misc]
    return ScriptedEngine(scripts, guards=of, max_model_tokens=max_model_tokens)


def _arm_guard(of: GuardInfo) -> ArmGuard:
    facts = (of.name, of.skill, of.method, of.kind.value, of.digest)
    return ArmGuard(*facts, of.rule.scope.value, of.rule.taus, of.rule.taus)


def arm(played: ScriptedEngine, **settings: Any) -> Arm:
    """An arm whose server is the scripted engine behind the real app."""
    guards = tuple(map(_arm_guard, played.info.guards))

    @asynccontextmanager
    async def connect() -> AsyncIterator[httpx.AsyncClient]:
        played.alive = True
        async with serving(played, anonymous_role="operator", **settings) as served:
            yield served.client

    return Arm("+".join(of.name for of in guards) or BASELINE, MODEL, guards, connect, scores=bool(guards))
