"""From `KIND[:LABEL]=SRC` to a suite of items, each with the whole prompt that is asked."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from guards.calibration.sources import parse_source, read_table, seeded_rank
from guards.errors import DataError
from guards.model.frames import BARE_FRAME, CHAT_FRAME
from server.evaluation.choices import MMLU, Choices, MMLUText
from server.evaluation.gsm8k import GSM8K
from server.evaluation.kinds import Kind, Question
from server.evaluation.mbpp import MBPP
from server.evaluation.options import EvaluationOptions
from server.evaluation.texts import TOFU, Passages, Prompts
from server.evaluation.toxicity import Toxicity

KINDS: Mapping[str, Callable[[EvaluationOptions], Kind]] = {
    "gsm8k": lambda _: GSM8K(),
    "mbpp": lambda _: MBPP(),
    "mmlu": lambda _: MMLU(),
    "mmlu-text": lambda _: MMLUText(),
    "choices": lambda _: Choices(),
    "tofu": lambda _: TOFU(),
    "toxicity": lambda _: Toxicity(),
    "mlqa": lambda _: Passages(),
    "xquad": lambda _: Passages(),
    "prompts": lambda options: Prompts(options.answer_field, options.match),
}

_CALLED_BY_KIND = ("gsm8k", "mbpp", "mmlu", "mmlu-text", "toxicity")
"""Kinds that are called by their own names; the others by their files', which name the skill."""


@dataclass(frozen=True)
class Item:
    """One prompt to ask, and what counts as right."""

    prompt: str
    question: Question
    digest: str
    """SHA-256 of prompt and gold answers."""


@dataclass(frozen=True)
class Suite:
    """The items of one column of the table."""

    label: str
    kind_name: str
    kind: Kind
    source: str
    shots: int
    stop: tuple[str, ...]
    items: tuple[Item, ...]
    rows: int
    """Rows with a question."""
    repeats: int
    """Of these, rows whose item was there before."""
    samples: int
    """Answers drawn to each item."""

    @property
    def skill(self) -> str:
        """The skill it measures."""
        return self.kind.traits.skill or self.label

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return sum(item.question.chance for item in self.items) / len(self.items)

    @property
    def sha256(self) -> str:
        """Digest of exactly the items asked, in their order."""
        return hashlib.sha256("\n".join(item.digest for item in self.items).encode()).hexdigest()


@dataclass(frozen=True)
class SuiteSpec:
    """A parsed `KIND[:LABEL]=SRC`."""

    kind: str
    label: str
    source: str


def parse_suite(text: str) -> SuiteSpec:
    """Raises DataError naming the part that is malformed. Without LABEL: the kind, or what the file is called."""
    head, equals, source = text.partition("=")
    kind, colon, label = head.partition(":")
    if not equals or not source or kind not in KINDS or (colon and not label):
        raise DataError(f"--suite: got {text!r}, wanted KIND[:LABEL]=SRC with KIND one of {', '.join(KINDS)}")
    if not label:
        label = kind if kind in _CALLED_BY_KIND else _file_label(source)
    return SuiteSpec(kind, label, source)


def _file_label(source: str) -> str:
    """What the file, folder or data set is called, without endings."""
    spec = parse_source(source)
    path = Path(spec.location)
    return (path if spec.is_hub else path.resolve()).name.partition(".")[0]


def parse_shots(texts: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """`LABEL=SRC` by label. Raises DataError for a label that is no suite's."""
    found = {}
    for text in texts:
        label, _, source = text.partition("=")
        if label not in labels or not source or label in found:
            raise DataError(f"--shots: got {text!r}, wanted LABEL=SRC, once, with LABEL one of {', '.join(labels)}")
        found[label] = source
    return found


def read_suites(suites: Sequence[str], shots: Sequence[str], options: EvaluationOptions) -> list[Suite]:
    """Reads every suite. Raises DataError; also when two have one label."""
    specs = [parse_suite(text) for text in suites]
    labels = [spec.label for spec in specs]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise DataError(f"--suite: got two suites labelled {twice[0]!r}; tell them apart with KIND:LABEL=SRC")
    sources = parse_shots(shots, labels)
    read = [_read(spec, sources.get(spec.label), options) for spec in specs]
    _refuse_samples(read, options)
    return read


def _refuse_samples(suites: Sequence[Suite], options: EvaluationOptions) -> None:
    if options.samples == 1:
        return
    if not any(suite.kind.traits.toxicity for suite in suites):
        raise DataError(
            f"--samples: got {options.samples} and no suite of kind toxicity, which it is for; leave it out"
        )
    if options.temperature == 0:
        raise DataError(
            f"--samples: got {options.samples} with --temperature 0, which draws one answer so many times; "
            "RealToxicityPrompts draws with --temperature 1 --top-p 0.9"
        )


def _read(spec: SuiteSpec, shots: str | None, options: EvaluationOptions) -> Suite:
    kind = KINDS[spec.kind](options)
    table = read_table(spec.source)
    solved = _read_shots(kind, spec, shots) if shots is not None else {}
    turn = turn_of(kind, options.frame, shown=shots is not None)
    items: dict[str, Item] = {}
    rows = 0
    for row in table.rows:
        question = kind.question(row, table.spec.field)
        if shots is not None and question.group not in solved:
            raise DataError(f"{row.where}: {shots} holds no solved example of {question.group!r}")
        before = "".join(
            f"{turn.replace('{text}', text)} {answer}\n\n" for text, answer in solved.get(question.group, ())
        )
        prompt = before + turn.replace("{text}", question.text)
        digest = hashlib.sha256(json.dumps([prompt, question.gold]).encode()).hexdigest()
        if question.text.strip():
            rows += 1
            items.setdefault(digest, Item(prompt, question, digest))
    kept = list(items.values())
    if not kept:
        raise DataError(
            f"{spec.source}: got no item out of {table.total} rows; loosen the condition or check the field"
        )
    if options.limit is not None and options.limit < len(kept):
        ranked = seeded_rank([item.prompt for item in kept], options.seed)
        kept = [kept[index] for index in sorted(ranked[: options.limit])]
    return Suite(
        label=spec.label,
        kind_name=spec.kind,
        kind=kind,
        source=table.name,
        shots=kind.traits.shots if shots is not None else 0,
        stop=_stop(turn),
        items=tuple(kept),
        rows=rows,
        repeats=rows - len(items),
        samples=options.samples if kind.traits.toxicity else 1,
    )


def _read_shots(kind: Kind, spec: SuiteSpec, source: str) -> dict[str, list[tuple[str, str]]]:
    """The first rows of each group, as (question, shown answer): the same for every seed."""
    wanted = kind.traits.shots
    if not wanted:
        raise DataError(f"--shots: suites of kind {spec.kind} take none; leave out {spec.label}={source}")
    table = read_table(source)
    found: dict[str, list[tuple[str, str]]] = {}
    for row in table.rows:
        question = kind.question(row, table.spec.field)
        group = found.setdefault(question.group, [])
        if len(group) < wanted:
            group.append((question.text, kind.shown_answer(row).strip(" ")))
    if short := [name for name, group in found.items() if len(group) < wanted]:
        raise DataError(f"--shots {source}: got {len(found[short[0]])} rows of group {short[0]!r}, wanted {wanted}")
    return found


def turn_of(kind: Kind, frame: str, *, shown: bool) -> str:
    """What surrounds one question: the frame where that is a template, else the kind's own form.

    The chat template itself is put around the whole prompt by the server.
    """
    if frame not in (CHAT_FRAME, BARE_FRAME):
        return frame
    return kind.traits.turn.with_shots if shown else kind.traits.turn.zero_shot


def _stop(turn: str) -> tuple[str, ...]:
    """Where a model goes on with a further question of its own, the answer is over."""
    opening = turn.partition("{text}")[0].strip()
    return (f"\n{opening}",) if opening else ()
