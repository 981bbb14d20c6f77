"""A classifier of the user's: its probabilities are those of the model itself, and of no other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from guards.errors import UnsupportedModelError
from server.errors import EvaluationError
from server.evaluation.classifier import open_classifier
from server.evaluation.scorer import Score
from tests.guards.tiny import save_tiny
from tests.server.evaluation.classifiers import KINDS, save_classifier

TEXTS = ("you fool", "good day", "a", "you are a fool and so am i", "thanks a lot", "no")


def scores(folder: Path, *texts: str, label: str = "toxic") -> dict[str, Score]:
    return dict(open_classifier(folder, label, "cpu").score(texts))


def by_hand(folder: Path, text: str) -> torch.Tensor:
    """The model's own logits of one text alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=ids).logits[0])


def rewrite(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", KINDS)
def test_each_text_has_the_probability_that_it_has_alone(kind: str, tmp_path: Path) -> None:
    """Of texts of several lengths in one call; GPT-2's folder has no padding token."""
    folder = save_classifier(tmp_path / kind, kind)
    found = scores(folder, *TEXTS)
    assert found.keys() == set(TEXTS)
    wanted = [float(by_hand(folder, text).softmax(-1)[1]) for text in TEXTS]
    assert [found[text].toxicity for text in TEXTS] == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 0.01, "they differ, so that a mistake shows"
    assert not any(score.truncated for score in found.values())


@pytest.mark.parametrize(
    ("labels", "problem", "function"),
    [
        (("neutral", "toxic"), None, "softmax"),
        (("neutral", "toxic"), "single_label_classification", "softmax"),
        (("rude", "toxic"), "multi_label_classification", "sigmoid"),
        (("toxic",), None, "sigmoid"),
    ],
)
def test_whether_labels_exclude_each_other(
    labels: tuple[str, ...], problem: str | None, function: str, tmp_path: Path
) -> None:
    folder = save_classifier(tmp_path / "model", labels=labels, problem_type=problem)
    classifier = open_classifier(folder, "toxic", "cpu")
    assert classifier.described["function"] == function
    logits = by_hand(folder, "you fool")
    wanted = logits.sigmoid() if function == "sigmoid" else logits.softmax(-1)
    ((_, score),) = classifier.score(["you fool"])
    assert score.toxicity == pytest.approx(float(wanted[labels.index("toxic")]), abs=1e-5)


@pytest.mark.parametrize(("kind", "fits"), [("bert", 40), ("roberta", 39)])
def test_what_does_not_fit_is_cut_and_said(kind: str, fits: int, tmp_path: Path) -> None:
    """RoBERTa's first position is behind its padding token's: of 40, 39 are left. One token more is an error."""
    folder = save_classifier(tmp_path / kind, kind)
    with pytest.raises((IndexError, RuntimeError)):
        by_hand(folder, "x" * (fits + 1))
    whole, long = "ab" * (fits // 2) + "a" * (fits % 2), "ab" * fits
    found = scores(folder, long, whole)
    assert [found[text].truncated for text in (whole, long)] == [False, True]
    assert found[long].toxicity == pytest.approx(found[whole].toxicity, abs=1e-5)


def test_the_tokenizers_own_limit_counts_too(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    rewrite(folder, "tokenizer_config.json", model_max_length=3)
    assert open_classifier(folder, "toxic", "cpu").described["max_tokens"] == 3
    assert scores(folder, "abcd")["abcd"].truncated


def test_a_text_without_tokens_says_nothing(tmp_path: Path) -> None:
    assert scores(save_classifier(tmp_path / "model"), "", "you fool")[""] == Score(0.0)


def test_labels_are_named(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="has no label 'Toxic'; wanted one of neutral, toxic, rude"):
        open_classifier(folder, "Toxic", "cpu")
    rewrite(folder, "config.json", id2label={"0": "toxic", "1": "toxic", "2": "rude"})
    with pytest.raises(UnsupportedModelError, match="has 2 labels 'toxic'"):
        open_classifier(folder, "toxic", "cpu")


def test_a_head_that_nobody_trained_is_refused(tmp_path: Path) -> None:
    """Transformers makes one up where a folder holds none: of a language model it would score by chance."""
    folder = save_tiny(tmp_path / "language-model")
    assert AutoModelForSequenceClassification.from_pretrained(folder).score.weight.shape[0] == 2
    with pytest.raises(UnsupportedModelError, match=r"1 weight\(s\) are in no .safetensors file, first 'score.weight'"):
        open_classifier(folder, "LABEL_1", "cpu")


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no such folder, wanted a local model folder"):
        open_classifier(tmp_path / "none", "toxic", "cpu")
    with pytest.raises(UnsupportedModelError, match="is a regression"):
        open_classifier(save_classifier(tmp_path / "a", problem_type="regression"), "toxic", "cpu")
    with pytest.raises(UnsupportedModelError, match="wanted cpu, cuda or cuda:N"):
        open_classifier(save_classifier(tmp_path / "b"), "toxic", "nonsense")
    pickled = save_classifier(tmp_path / "c")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match=r"got no .safetensors file"):
        open_classifier(pickled, "toxic", "cpu")
    for model_type, said in (("nonsense", "does not understand it"), ("vit", "no sequence classification")):
        folder = save_classifier(tmp_path / model_type)
        rewrite(folder, "config.json", model_type=model_type)
        with pytest.raises(UnsupportedModelError, match=said):
            open_classifier(folder, "toxic", "cpu")


def test_a_probability_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][1] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EvaluationError, match="gave a probability that is no number"):
        scores(folder, "you fool")


def test_what_scores_alike_has_one_digest(tmp_path: Path) -> None:
    def digest(folder: Path, label: str = "toxic") -> str:
        return str(open_classifier(folder, label, "cpu").described["sha256"])

    first, copy = save_classifier(tmp_path / "a" / "model"), save_classifier(tmp_path / "b" / "model")
    assert digest(first) == digest(copy)
    others = [digest(first, "rude")]
    rewrite(copy, "tokenizer_config.json", model_max_length=3)
    others.append(digest(copy))
    weights = load_file(first / "model.safetensors")
    save_file({**weights, "classifier.bias": weights["classifier.bias"] + 1}, first / "model.safetensors")
    others.append(digest(first))
    assert len({digest(save_classifier(tmp_path / "c" / "model")), *others}) == 4
