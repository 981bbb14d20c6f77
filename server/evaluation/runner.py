"""Asks every item of every suite in every arm, as many at a time as allowed, and keeps each as it finishes."""

import asyncio
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tqdm import tqdm

from server.engines.request import SamplingDefaults
from server.errors import EvaluationError
from server.evaluation.arms import Arm
from server.evaluation.client import TOO_LONG, Client, Prompt, Reply
from server.evaluation.folder import Record, RunFolder, key_of
from server.evaluation.kinds import Grade
from server.evaluation.options import EvaluationOptions
from server.evaluation.rouge import rouge1_recall
from server.evaluation.suites import Item, Suite

NEUTRAL = {
    each.name: each.default for each in fields(SamplingDefaults) if each.name not in ("max_tokens", "most_tokens")
}
"""Sent with every request, so that a model's own defaults change nothing of what is measured."""
TOO_MANY_FAILURES = 20
"""After so many an arm is given up: its server is gone, or no prompt fits."""


@dataclass
class Timing:
    """How long an arm took this time, its start included, and how many items were asked; the rest were there before."""

    seconds: float = 0.0
    asked: int = 0


@dataclass(frozen=True)
class _Asked:
    """One of the answers to an item."""

    suite: Suite
    item: Item
    sample: int


@dataclass
class _Work:
    """One arm while it runs."""

    arm: Arm
    options: EvaluationOptions
    folder: RunFolder
    failures: list[str] = field(default_factory=list)
    gate: asyncio.Semaphore = field(init=False)
    judges: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.gate = asyncio.Semaphore(self.options.concurrency)
        self.judges = asyncio.Semaphore(os.cpu_count() or 1)


def sampling_of(suite: Suite, item: Item, options: EvaluationOptions, sample: int = 0) -> dict[str, Any]:
    """The request fields that say how to draw one of the answers to an item.

    Its seed does not depend on which other items are asked, nor on how many answers are drawn.
    """
    traits = suite.kind.traits
    limit = traits.max_tokens if traits.fixed_length else options.max_tokens or traits.max_tokens
    temperature = 0.0 if traits.greedy else options.temperature
    sampling: dict[str, Any] = {"max_tokens": limit, "temperature": temperature}
    if suite.stop:
        sampling["stop"] = list(suite.stop)
    if temperature > 0:
        drawn = f"{options.seed}\n{item.digest}" + (f"\n{sample}" if sample else "")
        digest = hashlib.sha256(drawn.encode()).digest()
        sampling |= {"top_p": options.top_p, "seed": int.from_bytes(digest[:7]) % 2**53}
    return sampling


def item_key(arm: Arm, suite: Suite, item: Item, options: EvaluationOptions, sample: int = 0) -> str:
    """What an answer to an item is kept under."""
    return key_of(
        suite=suite.label,
        item=item.digest,
        guards=[[guard.name, guard.digest, guard.scope, guard.taus] for guard in arm.guards],
        frame=options.frame,
        sampling=sampling_of(suite, item, options, sample),
    )


def refuse_hidden(arm: Arm, folder: RunFolder) -> None:
    """Raises EvaluationError where the folder holds answers under a guard that may be another one by now."""
    hidden = [guard.name for guard in arm.guards if guard.hidden]
    if hidden and any(record.get("arm") == arm.name for record in folder.records.values()):
        raise EvaluationError(
            f"{folder.path}: holds answers under {hidden[0]}, of which artifact or taus are not shown (to this key, or "
            "by an older server), so it may be another guard by now; choose another --output, and give an operator's "
            "key to be able to go on with that"
        )


async def _require_same(arm: Arm, folder: RunFolder) -> None:
    """Raises EvaluationError where its guards are others than those that the answers are kept under."""
    if arm.guards_now is not None and await asyncio.to_thread(arm.guards_now) != arm.guards:
        raise EvaluationError(
            f"{folder.path}: the guards of {arm.name}, or their taus, were changed while it was asked, so nobody can "
            "tell which answers are under which; choose another --output"
        )


async def run_arms(
    arms: Sequence[Arm], suites: Sequence[Suite], options: EvaluationOptions, folder: RunFolder, *, quiet: bool = False
) -> dict[str, Timing]:
    """Asks what the folder does not hold yet. Raises EvaluationError at the end when an item has no answer."""
    timings, failures = {}, []
    for arm in arms:
        timing = timings[arm.name] = Timing()
        every = [
            (_Asked(suite, item, sample), item_key(arm, suite, item, options, sample))
            for suite in suites
            for item in suite.items
            for sample in range(suite.samples)
        ]
        todo = [(asked, key) for asked, key in every if key not in folder.records]
        refuse_hidden(arm, folder)
        if not todo:
            continue
        started = time.monotonic()
        work = _Work(arm, options, folder)
        async with arm.connect() as http:
            client = Client(http, arm.model)
            with tqdm(total=len(every), initial=len(every) - len(todo), desc=arm.name, disable=quiet or None) as bar:
                tasks = [asyncio.create_task(_one(work, client, *each, bar)) for each in todo]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
        await _require_same(arm, folder)
        timing.seconds, timing.asked = time.monotonic() - started, len(todo) - len(work.failures)
        failures += work.failures
    if failures:
        raise EvaluationError(
            f"{len(failures)} items have no answer, and an error is no wrong answer, so there are no results; first "
            f"{failures[0]}; mend that and run the same command again: finished items are kept, "
            "but for those under guards that a key is not shown"
        )
    return timings


async def _one(work: _Work, client: Client, asked: _Asked, key: str, bar: "tqdm[Any]") -> None:
    async with work.gate:
        if len(work.failures) >= TOO_MANY_FAILURES:
            return
        try:
            record = await _ask(work, client, asked)
        except EvaluationError as error:
            work.failures.append(f"{work.arm.name}, {asked.suite.label}, {asked.item.question.text[:60]!r}: {error}")
            return
    work.folder.append({"key": key, **record})
    bar.update()


async def _ask(work: _Work, client: Client, asked: _Asked) -> Record:
    suite, item = asked.suite, asked.item
    prompt = Prompt(item.prompt, chat=work.options.frame == "chat")
    sampling = NEUTRAL | sampling_of(suite, item, work.options, asked.sample)
    reply = await client.ask(prompt, sampling, item.question.letters)
    too_long = reply.finish_reason == TOO_LONG
    if too_long and work.options.too_long == "fail":
        raise EvaluationError(f"{reply.text}; or say --too-long leave-out")
    checked = work.arm.scores and work.arm.detectors and not too_long and asked.sample == 0  # of the prompt alone
    ratios = await client.ratios(prompt) if checked else None
    grade = await _judge(work, suite, item, reply)
    references = item.question.references
    return {
        "arm": work.arm.name,
        "suite": suite.label,
        "item": item.digest,
        "sample": asked.sample,
        "finish_reason": reply.finish_reason,
        "guard": None if reply.guard is None else {name: reply.guard.get(name) for name in ("skill", "stage")},
        "text": reply.text,
        "read": grade.read,
        "correct": grade.correct,
        "rouge1": rouge1_recall(reply.text, references) if references else None,
        "ratios": ratios,
    }


async def _judge(work: _Work, suite: Suite, item: Item, reply: Reply) -> Grade:
    """An abstention is not an answer, so it is not a right one."""
    if reply.abstained:
        return Grade(None if suite.kind.traits.toxicity else False, None)
    text = (reply.likeliest or "") if item.question.letters else reply.text
    if not suite.kind.traits.blocking:
        return suite.kind.grade(item.question.gold, text)
    async with work.judges:
        return await asyncio.to_thread(suite.kind.grade, item.question.gold, text)
