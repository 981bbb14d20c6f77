"""The materials: which texts of which data set, and which skills they need."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.prompts import code, mathematics, texts
from benchmarks.prompts.items import NONE, Item, Material
from benchmarks.prompts.splits import LANGUAGES, SUBJECTS, Split, normal_form, rows
from benchmarks.prompts.word_problems import TEMPLATES, word_problems

Values = Mapping[str, Any]
MATHEMATICS, CODE, ENGLISH = frozenset({"mathematics"}), frozenset({"code"}), frozenset({"language-en"})
HISTORY = ("high_school_european_history", "high_school_us_history", "high_school_world_history", "prehistory")
QUANTITATIVE = (
    "astronomy",
    "college_chemistry",
    "college_physics",
    "conceptual_physics",
    "econometrics",
    "electrical_engineering",
    "formal_logic",
    "high_school_chemistry",
    "high_school_macroeconomics",
    "high_school_microeconomics",
    "high_school_physics",
    "professional_accounting",
)
"""MMLU's subjects, beside computing, whose questions often ask for a calculation: arguable for mathematics."""
MMLU_GROUPS: Mapping[str, tuple[str, ...]] = {
    "elementary": ("elementary_mathematics",),
    "high-school": ("high_school_mathematics",),
    "college": ("abstract_algebra", "college_mathematics", "high_school_statistics"),
    "computing": SUBJECTS["computing"],
    "quantitative": QUANTITATIVE,
    "history": HISTORY,
}
MATHEMATICAL = ("elementary", "high-school", "college")


def _unique(items: Iterable[Item]) -> list[Item]:
    """Each text once, none blank."""
    found: dict[str, Item] = {}
    for item in items:
        if item.text.strip():
            found.setdefault(normal_form(item.text), item)
    return list(found.values())


def _material(name: str, make: Callable[[Path, Split], Iterable[Item]], **more: Any) -> Material:
    """A material whose train side leaves out what its test side holds, after changes of case and space."""

    @lru_cache(maxsize=4)
    def read(data: Path, split: Split) -> Sequence[Item]:
        items = _unique(make(data, split))
        if split is Split.TEST:
            return items
        measured = {normal_form(item.text) for item in make(data, Split.TEST)}
        return [item for item in items if normal_form(item.text) not in measured]

    return Material(name, read, **more)


def _mmlu_item(row: Values) -> Item:
    return Item(row["question"], str(row["choices"][row["answer"]]))


def _mmlu_group(row: Values) -> str:
    """What gives a quantity and asks for a number is quantitative in every subject without a group of its own."""
    other = "quantitative" if texts.asks_for_a_calculation(row["question"], row["choices"]) else "other"
    return next((name for name, subjects in MMLU_GROUPS.items() if row["subject"] in subjects), other)


def _mmlu(group: str, keep: Callable[[str], bool] = lambda _: True, **more: Any) -> Material:
    def make(data: Path, split: Split) -> Iterable[Item]:
        questions = (row for row in rows(data, "mmlu", split) if _mmlu_group(row) == group)
        return (_mmlu_item(row) for row in questions if keep(row["question"]))

    return _material(f"mmlu-{group}", make, **more)


def _gsm8k_item(row: Values) -> Item:
    return Item(row["question"], f"The answer is {row['answer'].rpartition('####')[2].strip()}.")


def _mbpp(name: str, make: Callable[[Values], str | None]) -> Material:
    def items(data: Path, split: Split) -> Iterable[Item]:
        made = ((make(row), code.reference(row)) for row in rows(data, "mbpp", split))
        return (Item(text, answer) for text, answer in made if text is not None)

    return _material(name, items, skills=CODE, arguable=ENGLISH)


def _questions(language: str, name: str, keep: Callable[[str], bool] = lambda _: True) -> Material:
    def make(data: Path, split: Split) -> Iterable[Item]:
        asked = (row for row in rows(data, f"xquad-{language}", split) if keep(row["question"]))
        return (Item(row["question"], str(row["answers"][0])) for row in asked)

    return _material(name, make, skills=frozenset({f"language-{language}"}))


def _contexts(language: str) -> Material:
    def make(data: Path, split: Split) -> Iterable[Item]:
        return (Item(row["context"]) for row in rows(data, f"xquad-{language}", split))

    return _material(f"xquad-{language}-contexts", make, skills=frozenset({f"language-{language}"}))


def _wikitext(name: str, keep: Callable[[str], bool]) -> Material:
    def make(data: Path, split: Split) -> Iterable[Item]:
        lines = (str(row["text"]).strip() for row in rows(data, "wikitext2", split))
        return (Item(line) for line in lines if texts.is_paragraph(line) and keep(line))

    return _material(name, make, arguable=ENGLISH)


def _written(language: str) -> Material:
    def make(data: Path, split: Split) -> Iterable[Item]:
        return (Item(text, answer) for text, answer in word_problems(language, train=split is Split.TRAIN))

    return _material(f"word-problems-{language}", make, skills=MATHEMATICS | {f"language-{language}"})


def _all() -> Iterable[Material]:
    yield _material(
        "gsm8k",
        lambda data, split: map(_gsm8k_item, rows(data, "gsm8k", split)),
        skills=MATHEMATICS,
        arguable=ENGLISH,
    )
    yield from (_mmlu(group, skills=MATHEMATICS, arguable=ENGLISH) for group in MATHEMATICAL)
    yield _material(
        "expressions",
        lambda data, split: (
            Item(*pair) for pair in mathematics.calculations(row["answer"] for row in rows(data, "gsm8k", split))
        ),
        skills=MATHEMATICS,
    )
    yield _material(
        "equations",
        lambda data, split: (Item(*pair) for pair in mathematics.equations(split)),
        skills=MATHEMATICS,
        arguable=ENGLISH,
    )
    yield from map(_written, TEMPLATES)
    yield _mbpp("mbpp", lambda row: str(row["text"]))
    yield _mbpp("mbpp-signature", code.signature)
    yield _mbpp("mbpp-partial", code.partial)
    yield _mbpp("mbpp-fix", code.fix)
    yield _mbpp("mbpp-explain", code.explain)
    for language in LANGUAGES:
        yield _questions(language, f"xquad-{language}")
        yield _contexts(language)
    yield _questions("en", "xquad-en-numbers", texts.asks_for_a_number)
    yield _mmlu("computing", lambda question: not texts.has_code(question), arguable=ENGLISH | MATHEMATICS)
    yield _mmlu("quantitative", arguable=ENGLISH | MATHEMATICS)
    yield _mmlu("history", arguable=ENGLISH)
    yield _mmlu("other", arguable=ENGLISH)
    yield _wikitext("wikitext", lambda _: True)
    yield _wikitext("wikitext-digits", texts.has_many_digits)


MATERIALS: Mapping[str, Material] = {material.name: material for material in _all()}
SKILLS = ("mathematics", "code", *(f"language-{language}" for language in LANGUAGES))
assert all(material.skills - set(SKILLS) == NONE for material in MATERIALS.values())
