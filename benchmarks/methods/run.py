"""A run: for each row its guard, and every stage that measures it. What is done is kept, and done once.

| stage | what is kept of a row |
|---|---|
| made | the options that were tried, and which was chosen |
| heard | of every question that was asked over the API, whether it was refused, and whether the answer calculates |
| said | of an intervention, and of the model alone: how unlikely the right answers are to it |
| chosen | of the same, which exam questions it has right |
| relearned | of what can be folded into the weights, and of the model alone: the same after some steps of training |
| decode | how fast a decode step is beside one without the guard |
"""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.methods.answers import ask, calculates
from benchmarks.methods.choices import Exam, taken
from benchmarks.methods.guards import COMPARED, all_said, guarding, make
from benchmarks.methods.material import OWN, REWORDINGS, Material, examples, reworded
from benchmarks.methods.perplexity import Said, said
from benchmarks.methods.relearning import changes, folded, relearned
from benchmarks.overhead import Embedded, Workload, alternate, summarise
from benchmarks.prompts.items import Item
from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardKind, GuardMode
from guards.inside.transformers.loading import LoadedModel
from guards.methods.loaded import LoadedGuard, read_guards
from server.engines.events import FinishReason
from server.engines.options import EmbeddedOptions
from server.evaluation.folder import RunFolder, key_of

NONE, GIVEN = "none", "ksd"
ROWS = (NONE, GIVEN, *COMPARED)
TOKENS = 64
"""Of an answer."""
DECODE = Workload("decode", 8, 16, 24)
REWORDED = f"{OWN}.reworded"
"""Every question in one rewording, in turn."""
_LOG = Console(file=sys.stderr, width=150)

Found = dict[str, Any]


def columns(texts: Material, *, kept: bool) -> dict[str, Sequence[Item]]:
    """What is asked: the skill's questions as they are and in every rewording, and of what may refuse them others."""
    own = texts.asked[OWN]
    others = {column: items for column, items in texts.asked.items() if kept and column != OWN}
    return {OWN: own, **{f"{OWN}.{rule.name}": reworded(own, rule) for rule in REWORDINGS}, **others}


def answered(texts: Material) -> dict[str, Sequence[Item]]:
    """All whose right answers are read."""
    in_turn = [reworded([item], REWORDINGS[index % len(REWORDINGS)])[0] for index, item in enumerate(texts.asked[OWN])]
    return {**texts.asked, REWORDED: in_turn}


@dataclass(frozen=True)
class Run:
    """One model's run. `given`: the artifact of the row GIVEN. `work`: where guards and answers of `tokens` lie."""

    model: Path
    loaded: LoadedModel
    texts: Material
    exams: Mapping[str, Sequence[Exam]]
    given: Path
    work: Path
    rounds: int
    kept: RunFolder
    tokens: int = TOKENS

    @cached_property
    def _unguarded(self) -> Mapping[str, Sequence[Said]]:
        """What the model alone makes of validation texts."""
        return all_said(self.loaded, self.texts.chosen_on)

    def row(self, name: str) -> Found:
        """All stages of one row."""
        found = {"method": name, "made": self._once(name, "made", lambda: self._made(name))}
        guard = None if name == NONE else self._guard(name)
        kind = NONE if guard is None else guard.method.kind.value
        detects = guard is not None and guard.method.kind is GuardKind.DETECTOR
        stages: dict[str, Callable[[], Any] | None] = {
            "heard": lambda: self._heard(name, kept=detects),
            "said": None if detects else lambda: self._said(guard),
            "chosen": None if detects else lambda: self._chosen(guard),
            "relearned": (lambda: self._relearned(guard)) if guard is None or changes(guard.guard) else None,
            "decode": (lambda: self._decode(name, guard)) if guard is not None else None,
        }
        done = {stage: self._once(name, stage, work) if work else None for stage, work in stages.items()}
        return {**found, "kind": kind, **done}

    def _once(self, row: str, stage: str, work: Callable[[], Any]) -> Any:
        key = key_of(row=row, stage=stage)
        if key not in self.kept.records:
            began = time.monotonic()
            found = work()
            self.kept.append({"key": key, "row": row, "stage": stage, "found": found})
            _LOG.print(f"{row}, {stage}: {time.monotonic() - began:.0f} s")
        return self.kept.records[key]["found"]

    def _artifacts(self, row: str) -> tuple[Path, ...]:
        if row == NONE:
            return ()
        return (self.given if row == GIVEN else self.work / "guards" / row,)

    def _guard(self, row: str) -> LoadedGuard:
        (guard,) = read_guards(self._artifacts(row)).values()
        return guard

    def _made(self, row: str) -> list[Found]:
        if row not in COMPARED:
            return []
        (folder,) = self._artifacts(row)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return make(self.loaded, row, self.texts, self._unguarded, folder)

    def _heard(self, row: str, *, kept: bool) -> Mapping[str, Any]:
        options = EmbeddedOptions.model_validate({"model": str(self.model), "artifacts": self._artifacts(row)})
        return ask(options, columns(self.texts, kept=kept), self.work / "heard" / row, self.tokens)

    def _said(self, guard: LoadedGuard | None) -> Mapping[str, Any]:
        return all_said(self.loaded, answered(self.texts), None if guard is None else (guard.method, guard.guard))

    def _chosen(self, guard: LoadedGuard | None) -> Mapping[str, Any]:
        with guarding(self.loaded, None if guard is None else (guard.method, guard.guard)):
            return {column: taken(self.loaded, of) for column, of in self.exams.items()}

    def _relearned(self, guard: LoadedGuard | None) -> Found:
        codec, own = self.loaded.codec, self.texts.asked[OWN]
        prompts = [codec.encode_chat([{"role": "user", "content": item.text}]) for item in own]
        with (
            folded(self.loaded, {} if guard is None else changes(guard.guard)),
            relearned(self.loaded, examples(codec, self.texts.relearned)) as history,
        ):
            heard = [calculates(codec.decode(ids)) for ids in self.loaded.write(prompts, self.tokens)]
            return {"losses": history, "said": said(self.loaded, examples(codec, own)), "calculates": heard}

    def _decode(self, row: str, guard: LoadedGuard) -> Found:
        return asyncio.run(self._alternated(row, guard))

    async def _alternated(self, row: str, guard: LoadedGuard) -> Found:
        """Drawn prompts are no texts, so that detectors only watch: it costs the same, and no answer ends early."""
        watched = guard.method.kind is GuardKind.DETECTOR
        rule = Rule(GuardMode.SHADOW if watched else GuardMode.ENFORCE, guard.guard.scope, guard.bound.taus)
        engines, policy = Embedded(self.model, self.loaded.identity.dtype), Policy({guard.artifact.name: rule})
        async with (
            engines.plain() as plain,
            engines.guarded(self._artifacts(row), FinishReason.LENGTH, policy) as guarded,
        ):
            return summarise(DECODE, *await alternate(plain, guarded, DECODE, self.rounds))
