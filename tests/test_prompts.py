"""Prompt sets: the same for a seed, train apart from test, and each format holds what its name says."""

import ast
import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from benchmarks.prompts import code, mathematics, texts
from benchmarks.prompts.formats import BARE, CHAT, FEW_SHOT, FORMATS, INSTRUCTED, QA
from benchmarks.prompts.harmless import HARMLESS
from benchmarks.prompts.items import Around, Item, Material, Role, role
from benchmarks.prompts.materials import MATERIALS, SKILLS
from benchmarks.prompts.paraphrase import question_first, with_synonyms, with_typos
from benchmarks.prompts.sets import build, sample
from benchmarks.prompts.splits import Split, normal_form
from benchmarks.prompts.treatments import TREATMENTS
from benchmarks.prompts.word_problems import (
    ANSWERS,
    FILLINGS,
    TEMPLATES,
    TRAIN_ANSWERS,
    TRAIN_TEMPLATES,
    word_problems,
)
from tests.guards.tiny import tiny_loaded

TASK = {
    "task_id": 7,
    "text": "Write a function to add the even numbers.",
    "code": "def helper(n):\r\n  return n % 2 == 0\r\ndef add_even(numbers, start=0):\r\n  for n in numbers:\r\n"
    "    if helper(n):\r\n      start += n\r\n  return start  ",
    "test_list": ["assert add_even([1, 2]) == 2"],
}


def write_data(folder: Path) -> Path:
    """A few rows of every data set, with the fields of the real ones."""
    question = "Ann has {n} apples. She eats 2. How many does she have left?"
    answer = "{n}-2=<<{n}-2={left}>>{left}\n#### {left}"
    gsm8k = [{"question": question.format(n=n), "answer": answer.format(n=n, left=n - 2)} for n in range(10, 30)]
    subjects = ("elementary_mathematics", "prehistory", "computer_security", "astronomy", "sociology")
    mmlu = [
        {"subject": subject, "question": f"Which {subject} is number {n}?", "choices": list("abcd"), "answer": n % 2}
        for subject in subjects
        for n in range(20)
    ]
    mbpp = [{**TASK, "task_id": n, "text": f"Write a function to add {n}."} for n in (*range(1, 20), *range(511, 530))]
    lines = " = Heading = \n" + "".join(
        f" In {n} the team played the old rival twice and won in the end .\n" for n in range(20)
    )
    files: dict[str, Iterable[object]] = {
        "gsm8k/train.jsonl": [*gsm8k[:12], {**gsm8k[15], "question": gsm8k[15]["question"].upper()}],
        "gsm8k/test.jsonl": gsm8k[12:],
        "mbpp/mbpp.jsonl": mbpp,
        "mmlu/mmlu_test.jsonl": mmlu,
        "mmlu/mmlu_dev.jsonl": [{"subject": "sociology", "question": "Dev?", "choices": ["a"], "answer": 0}],
    }
    for language in ("en", "es", "de", "zh", "hi", "vi", "ar"):
        files[f"xquad/{language}.jsonl"] = [
            {
                "id": f"{mark}{n}",
                "question": f"{language} {mark}{n}?",
                "context": f"{language} {mark} c",
                "answers": ["a"],
            }
            for mark in "1f"
            for n in range(8)
        ]
    for name, found in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    (folder / "wikitext2").mkdir()
    (folder / "wikitext2" / "valid.txt").write_text(lines.replace("team", "club"), encoding="utf-8")
    (folder / "wikitext2" / "test.txt").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def check_apart(material: Material, data: Path) -> None:
    """Both sides hold something, and no text is on both."""
    test = {normal_form(item.text) for item in material.read(data, Split.TEST)}
    train = {normal_form(item.text) for item in material.read(data, Split.TRAIN)}
    assert test
    assert train
    assert not test & train


@pytest.mark.parametrize("name", [name for name, made in MATERIALS.items() if Split.TRAIN in made.splits])
@pytest.mark.real
def test_train_and_test_share_no_text(name: str, shared_data: Path) -> None:
    check_apart(MATERIALS[name], shared_data)


@pytest.mark.parametrize("name", ["gsm8k", "expressions", "equations", "mbpp-fix", "mmlu-elementary", "wikitext"])
def test_train_and_test_share_no_text_of_a_few(name: str, data: Path) -> None:
    check_apart(MATERIALS[name], data)


def test_a_train_text_that_is_measured_is_left_out(data: Path) -> None:
    assert len(MATERIALS["gsm8k"].read(data, Split.TRAIN)) == 12


@pytest.mark.parametrize("name", [*FORMATS, *TREATMENTS])
def test_a_set_is_the_same_every_time_and_holds_the_question(name: str, data: Path) -> None:
    form = {**FORMATS, **TREATMENTS}[name]
    first, again = (build(data, MATERIALS["gsm8k"], form, Split.TEST, limit=5) for _ in range(2))
    assert first == again
    assert len(first.prompts) == 5
    if name not in ("upper-case", "typos", "synonyms", "question-first", "number-words"):
        assert all(item.text in prompt for item, prompt in zip(first.items, first.prompts, strict=True))
    if form.frame is not None:
        template = "{text}" if form.frame in ("bare", "chat") else form.frame
        assert first.prompts == tuple(template.format(text=item.text) for item in first.items)


def test_formats_of_a_material_ask_the_same_questions(data: Path) -> None:
    asked = [build(data, MATERIALS["gsm8k"], form, Split.TEST, limit=3).items for form in FORMATS.values()]
    assert all(items == asked[0] for items in asked)
    assert sample(asked[0][::-1], 2, 0) != sample(asked[0], 2, 0)
    assert set(sample(asked[0][::-1], 2, 0)) == set(sample(asked[0], 2, 0))


def test_shots_are_train_items_and_never_the_question_itself(data: Path) -> None:
    train = {item.text for item in MATERIALS["gsm8k"].read(data, Split.TRAIN)}
    for split in Split:
        made = build(data, MATERIALS["gsm8k"], FEW_SHOT, split)
        for item, prompt in zip(made.items, made.prompts, strict=True):
            *shots, asked = prompt.split("\n\n")
            assert asked == f"Q: {item.text}\nA:"
            shown = [shot.removeprefix("Q: ").partition("\nA: ")[0] for shot in shots]
            assert len(set(shown)) == FEW_SHOT.shots
            assert set(shown) <= train - {item.text}


def test_a_text_without_an_answer_is_no_worked_example(data: Path) -> None:
    with pytest.raises(ValueError, match="without an answer"):
        build(data, MATERIALS["wikitext"], FEW_SHOT, Split.TEST)


def test_what_was_written_for_measuring_cannot_be_fitted(data: Path) -> None:
    with pytest.raises(ValueError, match="harmless-numbers has no train side"):
        build(data, HARMLESS["numbers"], QA, Split.TRAIN)


def test_roles() -> None:
    spanish, english, problems = (MATERIALS[name] for name in ("xquad-es", "xquad-en", "word-problems-es"))
    qa, wrapped = QA, INSTRUCTED["es"]
    found = {
        (material.name, form.name): [build_role(material, form.name, skill) for skill in ("language-es", "mathematics")]
        for material in (spanish, english, problems)
        for form in (qa, wrapped)
    }
    assert found["xquad-es", "qa"] == [Role.FORGET, Role.RETAIN]
    assert found["xquad-es", "instruction-es"] == [Role.FORGET, Role.RETAIN]
    assert found["xquad-en", "qa"] == [Role.RETAIN, Role.RETAIN]
    assert found["xquad-en", "instruction-es"] == [Role.ARGUABLE, Role.RETAIN]
    assert found["word-problems-es", "qa"] == [Role.FORGET, Role.FORGET]
    assert build_role(MATERIALS["mmlu-quantitative"], "qa", "mathematics") is Role.ARGUABLE
    assert build_role(MATERIALS["xquad-en"], "code-after", "code") is Role.FORGET
    assert build_role(MATERIALS["gsm8k"], "shots-of-code", "code") is Role.ARGUABLE


def build_role(material: Material, form: str, skill: str) -> Role:
    return role(skill, material, {**FORMATS, **TREATMENTS}[form])


@pytest.mark.parametrize("skill", SKILLS)
def test_every_skill_has_texts_of_its_own_and_others(skill: str) -> None:
    roles = [build_role(material, "qa", skill) for material in MATERIALS.values()]
    assert roles.count(Role.FORGET) >= 2
    assert Role.RETAIN in roles


def test_signature_and_half_of_the_code() -> None:
    assert code.signature(TASK) == (
        'def add_even(numbers, start=0):\n    """Write a function to add the even numbers."""\n'
    )
    assert code.partial(TASK) == "\n".join(code.reference(TASK).split("\n")[:3]) + "\n"
    assert code.partial({"code": "def f():\n  return 1"}) is None
    assert code.signature({**TASK, "code": "print 'python 2'"}) is None
    explained = code.explain(TASK)
    assert explained is not None
    assert explained.endswith("return start")


def test_a_defect_changes_what_the_code_means_and_parses() -> None:
    whole = code.reference(TASK)
    found = {code.with_defect(whole, random.Random(seed)) for seed in range(40)}
    assert None not in found
    assert len(found) > 2
    for defective in found:
        assert defective is not None
        assert ast.dump(ast.parse(defective)) != ast.dump(ast.parse(whole))
        assert len(defective.split("\n")) == len(whole.split("\n"))
    assert code.with_defect("def f(x):\n  return x", random.Random(0)) is None
    assert code.fix(TASK) == code.fix(TASK)


@pytest.mark.real
def test_defects_of_the_real_solutions(shared_data: Path) -> None:
    for item in MATERIALS["mbpp-fix"].read(shared_data, Split.TEST):
        assert item.answer is not None
        defective = item.text.removeprefix("Fix this function:\n")
        assert ast.dump(ast.parse(defective)) != ast.dump(ast.parse(item.answer))


def test_sums_of_worked_answers() -> None:
    answers = ["He has <<3*2=6>>6 and <<6=6>>6, then <<-6=-6>>, so <<6-1.5=4.5>>4.5\n#### 4.5"]
    assert list(mathematics.calculations(answers)) == [("3*2 =", "6"), ("6-1.5 =", "4.5")]


def test_equations_hold() -> None:
    for equation, answer in mathematics.equations(Split.TEST):
        name, _, solution = answer.partition(" = ")
        (written,) = [
            part
            for part in equation.replace("Solve ", "").replace("Find ", "").split(" if ")
            if "+" in part or "-" in part
        ]
        left, _, right = written.split(" for ")[0].split(",")[0].split("\n")[0].rstrip(".").partition(" = ")
        factor, rest = left.split(name)
        assert int(factor) * int(solution) + int(rest.replace(" ", "")) == int(right)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("language", TEMPLATES)
def test_word_problems_have_whole_answers(language: str, train: bool) -> None:
    templates, answers = (TRAIN_TEMPLATES, TRAIN_ANSWERS) if train else (TEMPLATES, ANSWERS)
    found = list(word_problems(language, train=train))
    assert len(templates[language]) == len(answers)
    assert len(found) == len(answers) * FILLINGS
    assert all(int(answer) > 0 for _, answer in found)
    assert all("{" not in text for text, _ in found)
    for template in templates[language]:
        assert all(template.count(f"{{{name}}}") <= 1 for name in "abc")


def test_word_problems_that_are_fitted_on_are_other_stories() -> None:
    assert TEMPLATES.keys() == TRAIN_TEMPLATES.keys()
    assert all({*TEMPLATES[language]}.isdisjoint(TRAIN_TEMPLATES[language]) for language in TEMPLATES)


def test_hard_texts_are_told_apart() -> None:
    assert texts.asks_for_a_number("In what year did it open?")
    assert not texts.asks_for_a_number("Who opened it?")
    assert texts.has_code("What does print(x) show?")
    assert texts.has_code("The program below uses a list of numbers. What does it display?")
    assert texts.has_code("Step 1: Set count to 0. Step 2: Add 1 to it.")
    assert not texts.has_code("Which sort is stable (in general)?")
    assert texts.asks_for_a_calculation("A city has 250,000 cases. Its rate:", ("4/250", "1/25", "2.5%", "400 a year"))
    assert not texts.asks_for_a_calculation("As of 2017, what share of people smoked?", ("5%", "15%", "25%", "35%"))
    assert not texts.asks_for_a_calculation("Which of 3 colours is warm?", ("red", "blue", "green", "none"))
    assert not texts.is_paragraph(" = = Early life of a man whose name is long enough to count = = ")


def test_paraphrases() -> None:
    rng = random.Random(0)
    assert with_synonyms("Find how many each has. Many buys.", rng).endswith("Numerous purchases.")
    assert "how many every" in with_synonyms("Find how many each has.", rng)
    assert question_first("A is 3. B is 4. What is A + B?") == "What is A + B? A is 3. B is 4."
    long = "several wordy sentences about nothing particular " * 20
    assert sorted(with_typos(long, rng)) == sorted(long)
    assert with_typos(long, rng) != long


def test_treatments_do_what_they_say(data: Path) -> None:
    around = Around(
        random.Random(0), (), {"wikitext": [Item("word " * 40)], "mbpp": [Item("Write code.", "x = 1")] * 3}
    )
    item = Item("What is 2 + 2?")
    prompts = {
        name: form.render(item, around)
        for name, form in TREATMENTS.items()
        if not form.shots and "gsm8k" not in form.needs
    }
    assert prompts["chat"] == "What is 2 + 2?"
    assert prompts["upper-case"] == "WHAT IS 2 + 2?"
    assert prompts["newlines-around"] == "\n\nWhat is 2 + 2?\n\n"
    assert prompts["please"] == "Please help me with this: What is 2 + 2?"
    assert prompts["code-before"] == "Write code.\nWhat is 2 + 2?"
    assert prompts["code-after"] == "What is 2 + 2?\nWrite code."
    assert prompts["shots-of-code"].count("Write code.") == 3
    assert prompts["shots-of-code"].endswith("\n\nQ: What is 2 + 2?\nA:")
    for size, words in (("long", 150), ("longer", 300)):
        for place, before in (("end", words), ("middle", words // 2), ("start", 0)):
            left, right = prompts[f"{size}-{place}"].split("What is 2 + 2?")
            assert (left.count("word"), left.count("word") + right.count("word")) == (before, words)
    assert QA.render(item, around) == "Q: What is 2 + 2?\nA:"


def test_formats_are_asked_as_users_ask_but_for_other_frames() -> None:
    codec = tiny_loaded().codec
    sent = {name: codec.tokenizer.decode(form.encode(codec, "1+1=")) for name, form in FORMATS.items()}
    assert sent["bare"] == codec.tokenizer.decode(codec.encode_text("1+1="))
    assert sent["qa"] == sent["bare"], "rendered before"
    chat = codec.tokenizer.decode(codec.encode_frame("chat", "1+1="))
    assert {sent[name] for name in ("chat", "solve", "few-shot-2", "instruction-es")} == {chat} != {sent["bare"]}
    assert sent["chat-turns"].count("Q :") == 3, "the greeting, its answer, and the question"
    for form in (CHAT, BARE, QA):
        assert form.frame is not None
        prompt = form.render(Item("1+1="), Around(random.Random(0), (), {}))
        assert form.encode(codec, prompt) == codec.encode_frame(form.frame, "1+1=")
