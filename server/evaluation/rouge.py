"""ROUGE-1 recall (Lin 2004) over words of any script."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

_NO_SPACES = ("CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits, without case; in scripts that write no spaces each letter is a word.

    The usual ROUGE tokenizer keeps a-z and 0-9 only, by which a Hindi or Chinese text has no words at all. No stemming.
    """
    found: list[str] = []
    run = ""
    for character in unicodedata.normalize("NFKC", text).casefold():
        alone = character > "\u0e00" and unicodedata.name(character, "").startswith(_NO_SPACES)
        inside = unicodedata.category(character)[0] in "LMN"
        if run and (alone or not inside):
            found.append(run)
            run = ""
        if alone and inside:
            found.append(character)
        elif inside:
            run += character
    return [*found, run] if run else found


def rouge1_recall(answer: str, references: Sequence[str]) -> float:
    """Share of a reference's words that the answer has, each as often as it has it; of the best reference."""
    said = Counter(words(answer))
    best = 0.0
    for reference in references:
        wanted = Counter(words(reference))
        if total := wanted.total():
            best = max(best, (wanted & said).total() / total)
    return best
