"""The skill, not the format: fitted on one source, measured on others of the skill and on all else in their formats.

    python -m benchmarks.transfer --model DIR [--skills mathematics ...] [--detectors paper ...]

Sets and what is fitted on what: `docs/measurements.md`. A pair of fit and set meets the goal with recall of .90 on the
set at false abstention of .01 on what is retained in the same format. Detectors that were fitted and sets that were
measured are kept under `--work`: a run that was stopped goes on there, and `benchmarks.robustness` takes the same
detectors. The last line printed is one JSON object.
"""

from collections.abc import Sequence

from benchmarks.detectors.run import Wanted, parse, run
from benchmarks.prompts.formats import BARE, CHAT, CHAT_TURNS, FEW_SHOT, INSTRUCTED, QA, SOLVE
from benchmarks.prompts.items import Format
from benchmarks.prompts.splits import LANGUAGES
from benchmarks.prompts.word_problems import TEMPLATES

LIMIT, LONG_LIMIT = 100, 40
"""Prompts of a set, and of one whose prompts are long."""
FRAMES = (CHAT, BARE, QA)
ASKED = (*FRAMES, CHAT_TURNS, SOLVE, FEW_SHOT)
FOREIGN = tuple(language for language in LANGUAGES if language != "en")
INSTRUCTIONS = tuple(INSTRUCTED[language] for language in ("en", "es", "hi"))


def _sets(formats: Sequence[Format], *materials: str, limit: int = LIMIT) -> list[Wanted]:
    return [Wanted(material, form, limit) for material in materials for form in formats]


def sets(skills: Sequence[str]) -> list[Wanted]:
    """All that is measured; languages in all formats and paragraphs only where one is a skill."""
    languages = [language for language in LANGUAGES if f"language-{language}" in skills]
    return [
        *_sets((*ASKED, *INSTRUCTIONS), "gsm8k", "mmlu-other", "xquad-en"),
        *_sets(ASKED, "mbpp"),
        *_sets((CHAT, BARE), "mmlu-elementary", "mmlu-high-school", "mmlu-college", "expressions", "equations"),
        *_sets((CHAT,), *(f"word-problems-{language}" for language in TEMPLATES)),
        *_sets((CHAT, BARE), "mbpp-signature", "mbpp-partial", "mbpp-fix", "mbpp-explain"),
        *_sets((*ASKED, INSTRUCTED["en"]) if languages else (CHAT, BARE), *(f"xquad-{each}" for each in FOREIGN)),
        *_sets((CHAT, BARE), *(f"xquad-{each}-contexts" for each in LANGUAGES if languages), limit=LONG_LIMIT),
        *_sets((CHAT, BARE, SOLVE), "xquad-en-numbers", "mmlu-computing", "mmlu-quantitative"),
        *_sets((CHAT, BARE, SOLVE), "mmlu-history", limit=LONG_LIMIT),
        *_sets((CHAT, BARE), "wikitext", "wikitext-digits", limit=LONG_LIMIT),
    ]


if __name__ == "__main__":
    run("transfer", parse(__doc__ or ""), sets)
