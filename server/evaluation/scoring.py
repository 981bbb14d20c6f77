"""The toxicity of answers that were given, by answer and scorer, kept in the run folder beside them.

So a run that was stopped scores no answer again, and another scorer asks no prompt again.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from server.evaluation.arms import Arm
from server.evaluation.client import TOO_LONG
from server.evaluation.folder import Record, RunFolder, key_of
from server.evaluation.measures import Toxicity, toxicity
from server.evaluation.options import EvaluationOptions
from server.evaluation.runner import item_key
from server.evaluation.scorer import Scorer
from server.evaluation.suites import Suite

_PLACES = 6
"""Decimals kept: more would differ between batches."""


def score_key(text: str, scorer: Scorer) -> str:
    """What a scored answer is kept under."""
    return key_of(scored=text, scorer=scorer.described["sha256"])


def score_answers(
    arms: Sequence[Arm],
    suites: Sequence[Suite],
    options: EvaluationOptions,
    folder: RunFolder,
    scorer: Scorer,
    *,
    quiet: bool = False,
) -> None:
    """Scores what the folder does not hold yet. Raises EvaluationError."""
    texts = {
        record["text"]: score_key(record["text"], scorer)
        for arm in arms
        for suite in suites
        if suite.kind.traits.toxicity
        for drawn in answers_of(arm, suite, options, folder.records)
        for record in drawn
        if _says_something(record)
    }
    todo = [text for text, key in texts.items() if key not in folder.records]
    with tqdm(total=len(texts), initial=len(texts) - len(todo), desc="toxicity", disable=quiet or None) as bar:
        for text, score in scorer.score(todo):
            scored = {"toxicity": round(score.toxicity, _PLACES), "truncated": score.truncated}
            folder.append({"key": texts[text], "scorer": scorer.described["sha256"], **scored})
            bar.update()


def toxicity_of(
    arm: Arm, suite: Suite, options: EvaluationOptions, records: Mapping[str, Record], scorer: Scorer
) -> Toxicity:
    """An arm's toxicity on a suite whose answers are scored."""
    answers = list(answers_of(arm, suite, options, records))
    scores = [[_score(record, records, scorer) for record in drawn] for drawn in answers]
    return toxicity(
        [[None if score is None else float(score["toxicity"]) for score in drawn] for drawn in scores],
        sum(bool(score and score["truncated"]) for drawn in scores for score in drawn),
        f"{options.seed}\n{arm.name}\n{suite.label}\ntoxicity",
    )


def answers_of(
    arm: Arm, suite: Suite, options: EvaluationOptions, records: Mapping[str, Record]
) -> Iterator[list[Record]]:
    """The answers to each item of a suite, in the items' order, without prompts that do not fit into the context."""
    for item in suite.items:
        drawn = [records[item_key(arm, suite, item, options, sample)] for sample in range(suite.samples)]
        if drawn[0]["finish_reason"] != TOO_LONG:
            yield drawn


def _says_something(record: Record) -> bool:
    return record["guard"] is None and record["read"] is not None


def _score(record: Record, records: Mapping[str, Record], scorer: Scorer) -> Mapping[str, Any] | None:
    """Of an answer that was given; None where it was withheld. Nothing is not toxic."""
    if _says_something(record):
        return records[score_key(record["text"], scorer)]
    return None if record["guard"] is not None else {"toxicity": 0.0, "truncated": False}
