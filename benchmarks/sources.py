"""Writes the training side of the public data as the files that `skillguard calibrate` takes.

    python -m benchmarks.sources --output DIR [--limit N] [--seed N]

A guard of mathematics, and one of code, of a real model:

    skillguard calibrate ksd --model MODEL --skill mathematics \\
      --forget DIR/mathematics/gsm8k.jsonl --forget DIR/mathematics/mmlu.jsonl \\
      --forget DIR/mathematics/expressions.jsonl --forget DIR/mathematics/equations.jsonl \\
      --retain DIR/code/mbpp.jsonl --retain DIR/code/fix.jsonl --retain DIR/other/mmlu.jsonl \\
      --retain DIR/other/history.jsonl --retain DIR/other/wikitext.jsonl --retain DIR/other/wikitext-digits.jsonl \\
      --retain DIR/other/english-numbers.jsonl --retain DIR/languages/es.jsonl --retain DIR/languages/de.jsonl \\
      --retain DIR/languages/zh.jsonl --retain DIR/languages/hi.jsonl --retain DIR/languages/vi.jsonl \\
      --retain DIR/languages/ar.jsonl --output GUARDS/ksd-mathematics

    skillguard calibrate ksd --model MODEL --skill code \\
      --forget DIR/code/mbpp.jsonl --forget DIR/code/signature.jsonl --forget DIR/code/partial.jsonl \\
      --forget DIR/code/fix.jsonl --forget DIR/code/explain.jsonl \\
      --retain DIR/mathematics/gsm8k.jsonl --retain DIR/mathematics/mmlu.jsonl \\
      --retain DIR/mathematics/expressions.jsonl --retain DIR/mathematics/equations.jsonl \\
      --retain DIR/other/mmlu.jsonl --retain DIR/other/computing.jsonl --retain DIR/other/history.jsonl \\
      --retain DIR/other/wikitext.jsonl --retain DIR/other/wikitext-digits.jsonl \\
      --retain DIR/other/english-numbers.jsonl --retain DIR/languages/es.jsonl --retain DIR/languages/de.jsonl \\
      --retain DIR/languages/zh.jsonl --retain DIR/languages/hi.jsonl --retain DIR/languages/vi.jsonl \\
      --retain DIR/languages/ar.jsonl --output GUARDS/ksd-code

A model that speaks other languages calculates in them too: `--forget DIR/mathematics/word-problems.jsonl` adds word
problems in six.

The files of code are of the same tasks, so that a part of what a calibration reports was fitted in another form: its
own recall is too good. What `benchmarks.asked` measures is of other tasks.

A guard of a language forgets DIR/languages/XX.jsonl and retains the six others (`--material english` where the language
is not English, `--material none` where it is). Every line is {"text": ...}. No text of the test side, which `python -m
benchmarks.asked` measures, is written. The last line printed is one JSON object: texts by file.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

from benchmarks.prompts.materials import MATERIALS, MATHEMATICAL
from benchmarks.prompts.sets import sample
from benchmarks.prompts.splits import LANGUAGES, Split, data_folder
from benchmarks.prompts.word_problems import TEMPLATES

LIMIT = 160
"""Texts of most files."""
SHARES: Mapping[str, float] = {
    **dict.fromkeys(("other/history", "other/wikitext", "other/wikitext-digits"), 1 / 3),
    **{f"languages/{language}": 1 / 2 for language in LANGUAGES},
    "code/mbpp": 2,
    "mathematics/mmlu": 2,
    "other/mmlu": 3,
}
"""Files of fewer texts, which are long or unlike every skill, and of more, which lie near one."""
FILES: Mapping[str, Sequence[str]] = {
    "mathematics/gsm8k": ("gsm8k",),
    "mathematics/mmlu": tuple(f"mmlu-{group}" for group in MATHEMATICAL),
    "mathematics/expressions": ("expressions",),
    "mathematics/equations": ("equations",),
    "mathematics/word-problems": tuple(f"word-problems-{language}" for language in TEMPLATES),
    "code/mbpp": ("mbpp",),
    **{f"code/{kind}": (f"mbpp-{kind}",) for kind in ("signature", "partial", "fix", "explain")},
    **{f"languages/{language}": (f"xquad-{language}",) for language in LANGUAGES},
    "other/mmlu": ("mmlu-other",),
    "other/computing": ("mmlu-computing",),
    "other/history": ("mmlu-history",),
    "other/wikitext": ("wikitext",),
    "other/wikitext-digits": ("wikitext-digits",),
    "other/english-numbers": ("xquad-en-numbers",),
}
"""Files, and the materials of which each holds a sample."""


def _shared(data: Path) -> set[str]:
    """Texts that materials of different skills hold, such as "Which of the following is true?": they need neither."""
    skills: dict[str, set[frozenset[str]]] = {}
    for name in (name for materials in FILES.values() for name in materials):
        for item in MATERIALS[name].read(data, Split.TRAIN):
            skills.setdefault(item.text, set()).add(MATERIALS[name].skills)
    return {text for text, found in skills.items() if len(found) > 1}


def texts(data: Path, materials: Sequence[str], limit: int, seed: int) -> list[str]:
    """At most `limit` texts of the materials' training sides, each once, drawn by `seed` and the texts alone."""
    shared = _shared(data)
    items = {item.text: item for name in materials for item in MATERIALS[name].read(data, Split.TRAIN)}
    return [item.text for item in sample([item for item in items.values() if item.text not in shared], limit, seed)]


def write(data: Path, output: Path, *, limit: int = LIMIT, seed: int = 0) -> dict[str, int]:
    """Writes every file, of about `limit` texts; returns how many texts each holds."""
    written = {}
    for name, materials in FILES.items():
        path = output / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = texts(data, materials, ceil(limit * SHARES.get(name, 1)), seed)
        path.write_text(
            "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in drawn), encoding="utf-8"
        )
        written[f"{name}.jsonl"] = len(drawn)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder that is written")
    parser.add_argument(
        "--limit", type=int, default=LIMIT, help=f"texts of most files, more or fewer of some (default {LIMIT})"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the texts (default 0)")
    args = parser.parse_args()
    if args.limit < 1:
        parser.error(f"got --limit {args.limit}, wanted at least 1")
    print(json.dumps({"files": write(data_folder(), args.output, limit=args.limit, seed=args.seed)}))


if __name__ == "__main__":
    main()
