"""The skill, not the format: fitted on one source, measured on others of the skill and on all else in their formats.

    python -m benchmarks.transfer [--model DIR] [--skills mathematics ...] [--detectors paper ...]

Sets and what is fitted on what: `docs/measurements.md`. A pair of fit and set meets the goal with recall of .90 on the
set at false abstention of .01 on what is retained in the same format. The last line printed is one JSON object.
"""

from collections.abc import Sequence

from benchmarks.detectors.run import Wanted, parse, run
from benchmarks.prompts.formats import BARE, CHAT, CHAT_TURNS, FEW_SHOT, INSTRUCTED, QA, SOLVE
from benchmarks.prompts.items import Format
from benchmarks.prompts.splits import LANGUAGES
from benchmarks.prompts.word_problems import TEMPLATES

LIMIT, LONG_LIMIT = 100, 40
"""Prompts of a set, and of one whose prompts are long."""
FRAMES = (QA, BARE, CHAT)
ASKED = (*FRAMES, CHAT_TURNS, SOLVE, FEW_SHOT)
FOREIGN = tuple(language for language in LANGUAGES if language != "en")


def _sets(formats: Sequence[Format], *materials: str, limit: int = LIMIT) -> list[Wanted]:
    return [Wanted(material, form, LONG_LIMIT if form.shots else limit) for material in materials for form in formats]


def sets() -> list[Wanted]:
    """All that is measured. Every format has materials of every role."""
    return [
        *_sets((*ASKED, *INSTRUCTED.values()), "gsm8k", "mmlu-other"),
        *_sets(ASKED, "mbpp"),
        *_sets(FRAMES, "mmlu-elementary", "mmlu-high-school", "mmlu-college", "expressions", "equations"),
        *_sets(FRAMES, *(f"word-problems-{language}" for language in TEMPLATES)),
        *_sets(FRAMES, "mbpp-signature", "mbpp-partial", "mbpp-fix", "mbpp-explain"),
        *_sets((*ASKED, INSTRUCTED["en"]), *(f"xquad-{language}" for language in FOREIGN)),
        *_sets((*ASKED, *INSTRUCTED.values()), "xquad-en"),
        *_sets(FRAMES, *(f"xquad-{language}-contexts" for language in LANGUAGES), limit=LONG_LIMIT),
        *_sets(ASKED, "xquad-en-numbers"),
        *_sets((*FRAMES, SOLVE), "mmlu-computing", "mmlu-quantitative"),
        *_sets((*FRAMES, SOLVE), "mmlu-history", limit=LONG_LIMIT),
        *_sets(FRAMES, "wikitext", "wikitext-digits", limit=LONG_LIMIT),
    ]


if __name__ == "__main__":
    run("transfer", parse(__doc__ or ""), sets())
