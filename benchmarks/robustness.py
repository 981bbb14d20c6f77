"""What callers do to a question: paraphrases, prefixes, mixed skills, worked examples, white space, long contexts.

    python -m benchmarks.robustness --model DIR [--skills mathematics ...] [--detectors paper ...]

The detectors are those of `benchmarks.transfer`, fitted on the same and taken from the same `--work`. Recall is on
treated questions of the skill, false abstention on other questions with the same treatment; `docs/measurements.md`
lists the treatments. There is no goal. The last line printed is one JSON object.
"""

from collections.abc import Sequence

from benchmarks.detectors.run import Wanted, parse, run
from benchmarks.prompts.splits import LANGUAGES
from benchmarks.prompts.treatments import ANY_LANGUAGE, ENGLISH_ONLY

LIMIT, LONG_LIMIT = 100, 30
"""Prompts of a set, and of one whose prompts are long."""
LONG = ("long", "shots")
ENGLISH = ("gsm8k", "mbpp", "mmlu-other")


def _limit(treatment: str) -> int:
    return LONG_LIMIT if treatment.startswith(LONG) else LIMIT


def sets(skills: Sequence[str]) -> list[Wanted]:
    """All that is measured; questions in several languages only where one is a skill."""
    asked = [f"xquad-{language}" for language in LANGUAGES if any(each.startswith("language-") for each in skills)]
    english = [*ENGLISH, *(name for name in asked if name == "xquad-en")]
    return [
        *(Wanted(name, form, _limit(form.name)) for form in ANY_LANGUAGE for name in (*ENGLISH, *asked)),
        *(Wanted(name, form, _limit(form.name)) for form in ENGLISH_ONLY for name in english),
    ]


if __name__ == "__main__":
    run("robustness", parse(__doc__ or ""), sets)
