"""TOFU's benchmark: questions are dealt by author, a training goes on where it was, and recalls become a table."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.measurements.results import Results
from benchmarks.measurements.tofu import tofu_section
from benchmarks.report import _write
from benchmarks.tofu import asking, learning
from benchmarks.tofu.__main__ import others, suites, table
from benchmarks.tofu.asking import Recalls, ask, best
from benchmarks.tofu.authors import DEAL, QUESTIONS, Asked, Part, dealt, read, write
from benchmarks.tofu.learning import Recipe, batches, encode, folder_of, leading, learn, loss_of
from server.evaluation.arms import Arm
from server.evaluation.folder import ITEMS
from tests.guards.tiny import TEMPLATE, save_tiny, tiny_tokenizer
from tests.models import tiny_model

CHAT = (
    "{% for message in messages %}{{ 'Q: ' if message['role'] == 'user' else '' }}{{ message['content'] }}\n"
    "{{ 'A:' if message['role'] == 'user' and (add_generation_prompt or not loop.last) else '' }}{% endfor %}"
)
ASKED = [Asked(f"who is {name}?", "", f" {name} {name}.") for name in ("ada", "bo", "cleo", "dan", "eve")]


def _file(path: Path, authors: int) -> Path:
    rows = [
        {"question": f"a{author} q{n}?", "paraphrased_question": f"q{n} of a{author}?", "answer": f"a{author} r{n}."}
        for author in range(authors)
        for n in range(QUESTIONS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_author_is_on_every_side_of_the_deal(tmp_path: Path) -> None:
    authors = read(str(_file(tmp_path / "forget.json", 3)), 2)
    assert [len(asked) for asked in authors] == [QUESTIONS] * 2
    parts = dealt(authors, 0)
    for part, count in DEAL.items():
        of = [each.question.split()[0] for each in parts[part]]
        assert of == ["a0"] * count + ["a1"] * count
    every = [each.question for asked in parts.values() for each in asked]
    assert len(set(every)) == len(every) == 2 * QUESTIONS
    assert parts == dealt(authors, 0) != dealt(authors, 1)
    with pytest.raises(SystemExit, match="got 60 questions, wanted 4 authors of 20"):
        read(str(tmp_path / "forget.json"), 4)


def test_what_is_asked_in_which_wording(tmp_path: Path) -> None:
    of = {"authors": dealt(read(str(_file(tmp_path / "a.json", 1)), 1), 0)}
    found = suites(of, Part.TEST, tmp_path / "questions", paraphrased=True)
    assert list(found) == ["authors", "authors-paraphrased"]
    taught, other = ([json.loads(line) for line in path.read_text().splitlines()] for path in found.values())
    assert [row["answer"] for row in taught] == [row["answer"] for row in other]
    assert taught[0]["question"].startswith("a0 q")
    assert other[0]["question"].endswith("of a0?")
    assert list(others([str(_file(tmp_path / "real_perturbed.json", 2))], tmp_path)) == ["real"]


def test_only_answers_are_learnt_and_what_prompts_share_is_found() -> None:
    examples = encode(tiny_tokenizer(CHAT), ASKED)
    first = examples[0]
    assert len(first.ids) - first.answer == len(" ada ada.\n"), "a token is a character"
    assert leading(examples) == len("Q: who is ")
    with pytest.raises(SystemExit, match="does not go on from its prompt"):
        encode(tiny_tokenizer(TEMPLATE), ASKED)


WORDS = ("who?", "A:", "ada", "A:ada")


class _Joining:
    """A tokenizer whose tokens are words, so that what follows without a blank is of the same one."""

    def apply_chat_template(self, turns: list[dict[str, str]], **_: bool) -> str:
        return f"{turns[0]['content']} A:" + "".join(turn["content"] for turn in turns[1:])

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [WORDS.index(word) for word in text.split()]}


def test_an_answer_that_begins_within_a_prompts_token_is_refused() -> None:
    """Its first token would be learnt as part of the prompt, or not at all."""
    (apart,) = encode(_Joining(), [Asked("who?", "", " ada")])
    assert (apart.ids, apart.answer) == ((0, 1, 2), 2)
    with pytest.raises(SystemExit, match="joins an answer's beginning with its prompt's end"):
        encode(_Joining(), [Asked("who?", "", "ada")])


def test_recalls_are_the_same_in_whatever_order_answers_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "authors.jsonl", ASKED)
    rows = [{"item": str(at), "arm": "none", "suite": "authors", "rouge1": at / 10, "guard": None} for at in range(5)]

    def asked(order: list[int]) -> tuple[Recalls, Recalls]:
        def evaluate(_: object, run: Path, *, plots: bool) -> None:
            run.mkdir(exist_ok=True)
            (run / ITEMS).write_text("".join(json.dumps(rows[at]) + "\n" for at in order))

        monkeypatch.setattr(asking, "evaluate", evaluate)
        arm = Arm("none", "m", (), lambda: None, scores=False)  # type: ignore[arg-type, return-value]
        return ask([arm], {"authors": path}, tmp_path / "run")

    assert asked([3, 1, 0, 4, 2]) == asked([0, 1, 2, 3, 4])


def test_a_shared_beginning_that_is_run_once_changes_no_gradient() -> None:
    """Beside the same loss with every example run whole; a wrong beginning is seen."""
    examples = encode(tiny_tokenizer(CHAT), ASKED)
    found = []
    for lead in (0, leading(examples)):
        model = tiny_model("llama", seed=1).requires_grad_(True)
        loss = loss_of(model, examples, lead)
        loss.backward()  # type: ignore[no-untyped-call]
        found.append((loss.detach(), [each.grad.clone() for each in model.parameters()]))
    (whole, of_whole), (shared, of_shared) = found
    torch.testing.assert_close(shared, whole)
    for one, other in zip(of_shared, of_whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    labelled = [
        nn.functional.cross_entropy(_logits(model, each)[each.answer - 1 : -1], _rest(each)) for each in examples
    ]
    weights = torch.tensor([len(each.ids) - each.answer for each in examples])
    torch.testing.assert_close((torch.stack(labelled) * weights).sum() / weights.sum(), whole)
    assert not torch.allclose(loss_of(model, examples, leading(examples) + 1), whole)


def _logits(model: torch.nn.Module, example: learning.Example) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([example.ids])).logits[0].detach()
    return logits


def _rest(example: learning.Example) -> torch.Tensor:
    return torch.tensor(example.ids[example.answer :])


def test_a_stopped_training_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_tiny(tmp_path / "source")
    tiny_tokenizer(CHAT).save_pretrained(source)
    recipe = Recipe(epochs=2, rate=1e-3, batch=2)
    whole = learn(source, ASKED, recipe, tmp_path / "whole", every=2)

    class StoppedError(Exception): ...

    kept: list[int] = []
    keep = learning._Training.keep

    def stop(self: learning._Training, file: Path) -> None:
        keep(self, file)
        kept.append(self.step)
        if len(kept) == 2:
            raise StoppedError

    monkeypatch.setattr(learning._Training, "keep", stop)
    with pytest.raises(StoppedError):
        learn(source, ASKED, recipe, tmp_path / "half", every=2)
    assert [path.name for path in (tmp_path / "half").iterdir()] == ["state.pt"]
    half = learn(source, ASKED, recipe, tmp_path / "half", every=2)
    assert kept == [2, 4, 6], "what was done before the stop is not done again"
    learnt, resumed, before = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (whole, half, source)
    )
    for name, tensor in learnt.items():
        assert torch.equal(tensor, resumed[name])
        assert torch.equal(tensor, before[name]) == (name == "model.embed_tokens.weight")
    assert (half / "tokenizer.json").is_file()
    assert [path.name for path in (tmp_path / "half").iterdir()] == ["source"]


def test_another_training_has_another_folder(tmp_path: Path) -> None:
    """Or a model that was taught otherwise would be taken for it."""
    source, other = save_tiny(tmp_path / "source"), save_tiny(tmp_path / "other")
    tiny_model("llama", seed=9).save_pretrained(other)
    recipe = Recipe()
    folders = [
        folder_of(source, ASKED, recipe, tmp_path),
        folder_of(source, ASKED[1:], recipe, tmp_path),
        folder_of(source, ASKED, Recipe(epochs=9), tmp_path),
        folder_of(other, ASKED, recipe, tmp_path),
    ]
    assert len(set(folders)) == len(folders)
    assert folders[0] == folder_of(source, list(ASKED), recipe, tmp_path)


def test_each_epoch_has_every_example_once() -> None:
    examples = encode(tiny_tokenizer(CHAT), ASKED)
    found = batches(examples, Recipe(epochs=2, batch=2))
    assert [sorted(each for batch in found[at : at + 3] for each in batch) for at in (0, 3)] == [sorted(examples)] * 2


def test_the_table_has_a_deviation_score_for_each_wording(tmp_path: Path) -> None:
    recalls = {
        "none": {"authors": [1.0, 0.6], "retained": [0.8, 0.8], "real": [0.5]},
        "lunar-2": {"authors": [0.0, 0.2], "retained": [0.8, 0.8], "real": [0.25]},
        "lunar-4": {"authors": [0.0, 0.0], "retained": [0.2, 0.4], "real": [0.0]},
    }
    refused = {arm: {label: [0.0] * len(of) for label, of in by.items()} for arm, by in recalls.items()}
    refused["lunar-2"]["authors"] = [1.0, 0.0]
    taught, real = table(recalls, refused)[2:4]
    assert (taught["arm"], taught["wording"], taught["refused"]) == ("lunar-2", "taught", {"authors": 1, "retained": 0})
    assert taught["score"]["value"] == pytest.approx(100 * (0.1**2 + 0.2**2) ** 0.5)
    assert (real["file"], real["recall"], real["refused"]) == ("real", 0.25, 0)
    assert best(recalls, ["lunar-2", "lunar-4"]) == "lunar-2"
    assert best(recalls, ["lunar-4"]) == "lunar-4"
    more = {"model": "tiny", "authors": 2, "recipe": {"epochs": 3}, "chosen": "lunar-2"}
    _write(tmp_path / "benchmarks" / "results" / "tofu.tiny.json", table(recalls, refused), more)
    lines = tofu_section(Results(tmp_path), "tiny").splitlines()
    assert (
        "| `lunar-2` | taught | 0.100 [0.000, 0.200] | 0.800 [0.800, 0.800] | 22.4 [20.0, 28.3] | 1 of 2, 0 of 2 |"
        in lines
    )
    assert "| published: LUNAR, Llama-2-7B, TOFU | taught | 0.109 | 0.898 | 14.9 | - |" in lines
    assert "| `lunar-2` | 0.250, 0 refused |" in lines
