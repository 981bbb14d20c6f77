"""Lists of words, and which scorer a command names."""

from pathlib import Path
from typing import Any

import pytest

from server.errors import ConfigError
from server.evaluation.options import EvaluationOptions, ToxicityOptions
from server.evaluation.scorer import Score
from server.evaluation.scorers import open_scorer, read_lexicon
from server.evaluation.suites import Suite, read_suites
from tests.server.evaluation.classifiers import save_classifier
from tests.server.evaluation.samples import write_jsonl


def suites(folder: Path, kind: str = "toxicity") -> list[Suite]:
    path = write_jsonl(folder / "rows.jsonl", [{"prompt": "You are", "answer": "x"}])
    return read_suites([f"{kind}={path}"], [], EvaluationOptions())


def toxic(folder: Path, lines: str, *texts: str) -> list[float]:
    path = folder / "words.txt"
    path.write_text(lines, encoding="utf-8")
    return [score.toxicity for _, score in read_lexicon(str(path)).score(texts)]


def test_any_word_of_the_list_is_toxic(tmp_path: Path) -> None:
    lines = "# what is counted\nFool  # mild\n\nshut up\n愚か\nété\n  # a comment\n"
    assert toxic(tmp_path, lines, "You FOOL!", "fools", "a foolish man", "") == [1, 0, 0, 0]
    assert toxic(tmp_path, lines, "Shut  up.", "shut it up", "up, shut", "Oh shut\nup") == [1, 0, 0, 1]
    assert toxic(tmp_path, lines, "彼は愚かだ", "か愚", "e\u0301te\u0301", "what is counted") == [1, 0, 1, 0]
    assert toxic(tmp_path, lines, "a mild fool", "mild", "this is a comment") == [1, 0, 0]


def test_the_shipped_words_are_mild_and_known() -> None:
    lexicon = read_lexicon("shipped")
    assert (lexicon.described["shipped"], lexicon.described["name"]) == (True, "mild_words.txt")
    assert dict(lexicon.score(["You are silly.", "The capital of France is Paris."])) == {
        "You are silly.": Score(1.0),
        "The capital of France is Paris.": Score(0.0),
    }


def test_lists_that_score_alike_have_one_digest(tmp_path: Path) -> None:
    digests = []
    for name, lines in (("a", "fool\nidiot\n"), ("b", "# b\nIDIOT\nfool"), ("c", "fool"), ("d", "fool idiot")):
        path = tmp_path / f"{name}.txt"
        path.write_text(lines)
        digests.append(read_lexicon(str(path)).described["sha256"])
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        (b"fool\n\xff", "cannot be read"),
        (b"fool\n***\n", r"words.txt:2: got '\*\*\*', wanted a word or phrase"),
        (b"# nothing\n\n", "got no word"),
    ],
)
def test_lists_that_are_none_are_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_lexicon(str(path))


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("toxicity", {}, "got neither of --toxicity-model and --toxicity-words, wanted one"),
        ("toxicity", {"toxicity_model": "m", "toxicity_words": "w"}, "got both of"),
        ("toxicity", {"toxicity_words": "w", "toxicity_label": "rude"}, "--toxicity-label: got --toxicity-words"),
        ("toxicity", {"toxicity_words": "w", "toxicity_device": "cpu"}, "--toxicity-device: got --toxicity-words"),
        ("prompts", {"toxicity_words": "shipped"}, "--toxicity-words: got no suite of kind toxicity"),
        ("prompts", {"toxicity_label": "rude"}, "--toxicity-label: got no suite of kind toxicity"),
    ],
)
def test_options_that_would_do_nothing_are_refused(kind: str, given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        open_scorer(ToxicityOptions(**given), suites(tmp_path, kind))


def test_the_scorer_that_is_named(tmp_path: Path) -> None:
    assert open_scorer(ToxicityOptions(), suites(tmp_path, "prompts")) is None
    words = open_scorer(ToxicityOptions(toxicity_words="shipped"), suites(tmp_path))
    folder = save_classifier(tmp_path / "tiny-bert")
    options = ToxicityOptions(toxicity_model=folder, toxicity_label="rude", toxicity_device="cpu")
    classifier = open_scorer(options, suites(tmp_path))
    assert words is not None
    assert classifier is not None
    assert (words.described["kind"], classifier.described["kind"]) == ("words", "classifier")
    assert [classifier.described[name] for name in ("name", "label", "max_tokens")] == ["tiny-bert", "rude", 40]
