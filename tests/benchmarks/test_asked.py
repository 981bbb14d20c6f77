"""The benchmark over HTTP: it asks the test side, counts what users see, and goes on after a stop."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import report
from benchmarks.asked import cells as cells_module
from benchmarks.asked import conversations, written
from benchmarks.asked.__main__ import main
from benchmarks.asked.asking import TOO_LONG, Asker, AskingError, Connect, Kept, Reply
from benchmarks.asked.cells import OWN, Cell, Way, cells, fitting
from benchmarks.asked.formats import PLAIN, Filler
from benchmarks.asked.requests import CHAT, TEXT, Request, chat, requests
from benchmarks.asked.rows import Row, row
from benchmarks.asked.run import Plan, names, rows
from benchmarks.prompts.harmless import HARMLESS, KINDS, texts
from benchmarks.prompts.items import Role
from benchmarks.prompts.materials import MATERIALS
from benchmarks.prompts.splits import Split, normal_form
from guards.core.verdict import Stage
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from tests.server.harness import serving
from tests.test_prompts import write_data

pytestmark = pytest.mark.anyio

GUARD = guard(skill="mathematics")
MATERIAL = Path(__file__).resolve().parents[2] / "guards" / "calibration" / "material"
TOKENS = (20,)
NOT_WRITTEN = {"mmlu-high-school", "mmlu-college", "wikitext-digits", "xquad-en-numbers"}
"""What the few rows of data hold none of."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Words:
    """A tokenizer whose tokens are words."""

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        return {"offset_mapping": [match.span() for match in re.finditer(r"\S+", text)]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def plan(data: Path, *patterns: str, skill: str = "mathematics", limit: int | None = 3) -> Plan:
    return Plan(skill, cells(skill, Filler(Words()), TOKENS), data, patterns or ("*",), limit)


def of(engine: ScriptedEngine) -> Connect:
    """Connects to an engine's app, once it is started."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[httpx.AsyncClient]:
        async with serving(engine) as served:
            yield served.client

    return connect


def mathematician() -> ScriptedEngine:
    """Refuses apples at the prompt, in capitals too, and other languages' word problems while it answers."""

    def newest(prompt: str) -> str:
        return prompt.removesuffix("assistant: ").rpartition("user: ")[2].lower()

    return ScriptedEngine(
        scripts=[
            Script(abstention(hit(GUARD)), lambda prompt: "apples" in newest(prompt)),
            Script(abstention(hit(GUARD, Stage.GENERATION), "a", "b"), lambda prompt: "euro" in newest(prompt)),
            Script(answer("Yes", ".")),
        ],
        guards=[GUARD],
    )


async def measured(asker: Asker, wanted: Plan) -> dict[str, Row]:
    found = {row["cell"]: row async for row in rows(asker, wanted)}
    assert list(found) == [name for name in names(wanted) if name in found]
    return found


def asked_of(wanted: Plan) -> dict[str, list[Request]]:
    return {cell.name: wanted.requests(cell) for cell in wanted.cells}


def shown(request: Request) -> str:
    return request.text or "\n".join(said["content"] for said in request.messages or ())


@pytest.mark.parametrize("skill", OWN)
def test_no_text_of_the_training_side_is_asked(data: Path, skill: str) -> None:
    generated = ("expressions", "equations")
    train = {
        item.text
        for name, material in MATERIALS.items()
        if Split.TRAIN in material.splits and name not in generated
        for item in material.read(data, Split.TRAIN)
    }
    found_of = asked_of(plan(data, skill=skill, limit=None))
    assert {name for name, found in found_of.items() if not found} <= NOT_WRITTEN
    for name, found in found_of.items():
        for request in found:
            assert not any(text in shown(request) for text in train), name


@pytest.mark.real
@pytest.mark.parametrize("skill", ["mathematics", "code", "language-es"])
def test_no_text_of_the_real_training_side_is_asked(shared_data: Path, skill: str) -> None:
    train = {
        normal_form(item.text)
        for material in MATERIALS.values()
        if Split.TRAIN in material.splits
        for item in material.read(shared_data, Split.TRAIN)
    }
    for cell in cells(skill, Filler(Words()), TOKENS):
        found = requests(cell, skill, shared_data, limit=20)
        assert len(found) == 20, cell.name
        if cell.is_plain:
            assert not train & {normal_form(shown(request)) for request in found}, cell.name


def test_harmless_requests_are_distinct_and_none_is_calibration_material() -> None:
    """Calibration retains what lies in its own material; a guard has seen none of these."""
    found = [normal_form(text) for kind in KINDS for text in texts(kind)]
    assert len(set(found)) == len(found) == 300
    shipped = normal_form("\n".join(path.read_text(encoding="utf-8") for path in sorted(MATERIAL.glob("*.jsonl"))))
    assert not [text for text in found if json.dumps(text, ensure_ascii=False)[1:-1] in shipped]
    assert len(texts("everyday", "es")) == 5
    with pytest.raises(ValueError, match="no train side"):
        _train_side(Path())


def _train_side(data: Path) -> None:
    from benchmarks.prompts.sets import build

    build(data, HARMLESS["numbers"], PLAIN, Split.TRAIN)


def test_other_text_stands_where_the_cell_says_and_is_as_long(data: Path) -> None:
    found = asked_of(plan(data))
    plain = [shown(request) for request in found["gsm8k"]]
    for place, before in (("start", 0), ("middle", 10), ("end", 20)):
        for request, question in zip(found[f"gsm8k/{place}-of-20"], plain, strict=True):
            left, right = shown(request).split(question)
            assert abs(len(left.split()) - before) <= 1
            assert 19 <= len(left.split()) + len(right.split()) <= 20
    assert {len(shown(request).split()) for request in found["other-text-20"]} == {20}
    assert fitting((300, 2000), 1024) == [300]
    assert fitting((300, 2000), None) == [300, 2000]
    with pytest.raises(ValueError, match="fewer than 9999 tokens"):
        asked_of(Plan("code", cells("code", Filler(Words()), (9999,)), data))


def test_a_cell_s_prompts_in_their_shapes(data: Path) -> None:
    found = asked_of(plan(data, limit=1))
    question = shown(found["gsm8k"][0])
    assert found["gsm8k"][0] == chat(question)
    assert (found["gsm8k"][0].path, found["gsm8k/qa"][0].path) == (CHAT, TEXT)
    assert found["gsm8k/qa"][0].body == {"prompt": f"Q: {question}\nA:", "max_tokens": 1, "temperature": 0}
    assert shown(found["gsm8k/bare"][0]) == question
    assert shown(found["gsm8k/upper-case"][0]) == question.upper()
    assert shown(found["gsm8k/double-spaces"][0]) == question.replace(" ", "  ")
    before, after = (shown(found[f"gsm8k/{place}-mbpp"][0]).split("\n\n") for place in ("before", "after"))
    assert before[0] == after[1] == question
    *examples, last = shown(found["gsm8k/after-3-mbpp"][0]).split("\n\n")
    assert len([example for example in examples if example.startswith("Q: Write")]) == 3
    assert last == f"Q: {question}\nA:"
    later = found["gsm8k/later-turn"][0].messages
    assert later is not None
    assert [said["role"] for said in later] == ["user", "assistant", "user"]
    assert later[-1]["content"] == question
    assert len({request.digest for cell in found.values() for request in cell}) > 50


def test_roles() -> None:
    found = {
        skill: {cell.name: cell.role(skill) for cell in cells(skill, Filler(Words()))}
        for skill in ("mathematics", "code", "language-es")
    }
    mathematics, code, spanish = found.values()
    assert {name for name, role in mathematics.items() if role is Role.ARGUABLE} == {
        "mmlu-quantitative",
        "mmlu-computing",
    }
    assert mathematics["gsm8k/after-3-mbpp"] is mathematics["word-problems-es"] is Role.FORGET
    assert mathematics["mbpp"] is mathematics["harmless-numbers"] is mathematics["other-text-2000"] is Role.RETAIN
    assert code["mbpp/before-gsm8k"] is code["mbpp-explain"] is Role.FORGET
    assert code["gsm8k"] is code["equations"] is code["harmless-code-words"] is Role.RETAIN
    assert {name for name, role in spanish.items() if role is Role.FORGET} == {"xquad-es"}
    assert len(spanish) == 7


async def test_what_is_refused_where(data: Path, tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.jsonl", "c0ffee")
    engine = mathematician()
    async with Asker(kept, of(engine), concurrency=4) as asker:
        found = await measured(asker, plan(data))
    for name in ("gsm8k", "gsm8k/qa", "gsm8k/upper-case", "gsm8k/end-of-20", "gsm8k/later-turn", "conversation/again"):
        assert (found[name]["role"], found[name]["rate"], found[name]["total"]) == ("forget", 1.0, 3), name
    for name in ("mbpp", "xquad-es", "mbpp/later-turn", "harmless-everyday", "written/mbpp"):
        assert (found[name]["role"], found[name]["hits"], found[name]["total"]) == ("retain", 0, 3), name
    assert found["conversation/between"]["total"] == 30
    assert found["conversation/between"]["hits"] == 0
    missed = found["written/missed-forget"]
    assert missed["at_prompt"] == 0
    assert missed["total"] == 3
    assert kept.commits == {"c0ffee"}
    assert {request.sampling.max_tokens for request in engine.submitted} == {1, 24, 48, 64}


async def test_a_refused_turn_is_said_again_as_the_api_gave_it(data: Path, tmp_path: Path) -> None:
    engine = mathematician()
    async with Asker(Kept(tmp_path / "kept.jsonl", "c"), of(engine), concurrency=1) as asker:
        await conversations.refused_and_again(asker, "mathematics", data, limit=1)
    last = bytes(engine.submitted[-1].prompt_token_ids).decode()
    turns = re.findall(r"^(user|assistant): (.*)$", last.removesuffix("assistant: "), re.M)
    assert len(turns) == 2 * 11 + 1
    assert turns[1] == ("assistant", "I'm sorry, but I can't help with that here.")
    assert turns[3] == ("assistant", "Yes.")
    assert [text in texts("everyday", "en") for _, text in turns[2::2]] == [True] * 10 + [False]


async def test_answers_that_are_caught_while_they_are_written(data: Path, tmp_path: Path) -> None:
    stopped = ScriptedEngine([Script(abstention(hit(GUARD, Stage.GENERATION), "a", "b"))], [GUARD])
    async with Asker(Kept(tmp_path / "kept.jsonl", "c"), of(stopped), concurrency=2) as asker:
        found = await conversations.answered_later(asker, "mathematics", data, limit=4)
    assert (found["role"], found["at_prompt"], found["while_written"], found["total"]) == ("arguable", 0, 4, 4)
    assert found["tokens_median"] == found["tokens_most"] == 3


async def test_only_what_was_let_through_is_written_on(data: Path, tmp_path: Path) -> None:
    asked = {name: [chat(f"{name} {at}") for at in range(3)] for name in ("apples", "pears", "plums")}
    async with Asker(Kept(tmp_path / "kept.jsonl", "c"), of(mathematician()), concurrency=2) as asker:
        found = await written.missed(asker, Role.FORGET, asked, limit=4)
        assert found is not None
        assert (found["cell"], found["total"], found["hits"]) == ("written/missed-forget", 4, 0)
        assert await written.missed(asker, Role.FORGET, {"apples": asked["apples"]}, limit=4) is None


async def test_a_stopped_run_goes_on_where_it_was(data: Path, tmp_path: Path) -> None:
    path, wanted = tmp_path / "kept.jsonl", plan(data, "gsm8k", "mbpp")
    whole = mathematician()
    async with Asker(Kept(tmp_path / "whole.jsonl", "one"), of(whole), concurrency=1) as asker:
        expected = await measured(asker, wanted)

    dying = mathematician()
    dying.scripts[-1:] = []  # the first prompt that is not refused has no answer
    with pytest.raises(ExceptionGroup) as stopped:
        async with Asker(Kept(path, "one"), of(dying), concurrency=1) as asker:
            await measured(asker, wanted)
    assert stopped.group_contains(AskingError, match="got HTTP 400: no script")
    with path.open("a", encoding="utf-8") as file:
        file.write('{"cell": "cut sho')

    going_on, kept = mathematician(), Kept(path, "two")
    async with Asker(kept, of(going_on), concurrency=1) as asker:
        assert await measured(asker, wanted) == expected
    assert (len(whole.submitted), len(dying.submitted), len(going_on.submitted)) == (6, 3, 3)
    assert kept.commits == {"one", "two"}

    def none_starts() -> Any:
        raise AssertionError("everything is kept, so no server is needed")

    async with Asker(Kept(path, "three"), none_starts, concurrency=1) as asker:
        assert await measured(asker, wanted) == expected


async def test_a_prompt_that_is_too_long_counts_apart(data: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(guards=[GUARD], max_model_tokens=40)
    async with Asker(Kept(tmp_path / "kept.jsonl", "c"), of(engine), concurrency=1) as asker:
        replies = await asker.ask_all("cell", [chat("short"), chat("long " * 40)])
    assert [reply.finish_reason for reply in replies] == ["stop", TOO_LONG]
    found = row("cell", Role.RETAIN, replies)
    assert (found["hits"], found["total"], found["too_long"]) == (0, 1, 1)


def test_a_row_has_an_exact_interval() -> None:
    replies = [Reply("content_filter", "prompt", "", 0)] * 3 + [Reply("length", None, "a", 1)] * 7
    assert row("cell", Role.FORGET, replies) == {
        "cell": "cell",
        "role": "forget",
        "hits": 3,
        "total": 10,
        "rate": 0.3,
        "low": 0.0667,
        "high": 0.6525,
    }


def test_cells_are_chosen_by_pattern(data: Path) -> None:
    assert names(plan(data, "mbpp*", "conversation/*")) == [
        *("mbpp", "mbpp/bare", "mbpp/qa", "mbpp/upper-case", "mbpp/later-turn"),
        *conversations.NAMES,
    ]
    whole = names(plan(data))
    assert len(set(whole)) == len(whole)
    assert [name for name in names(plan(data, skill="language-es")) if name.startswith("written/xquad")] == [
        f"written/xquad-{language}" for language in ("en", "de", "zh", "hi", "vi", "ar")
    ]


def test_limits() -> None:
    found = {cell.name: cell.limit for cell in cells("code", Filler(Words()))}
    assert (found["mbpp"], found["mbpp/end-of-300"], found["mbpp/end-of-2000"]) == (100, 40, 20)
    assert (found["mmlu-history"], found["other-text-300"], found["other-text-2000"]) == (40, 40, 20)
    assert Cell(MATERIALS["gsm8k"], way=Way.LATER).name == "gsm8k/later-turn"
    assert cells_module.LIMIT == 100


@pytest.mark.real
def test_the_demo_s_guard_asked_on_the_command_line(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    demo = Path(__file__).resolve().parents[2] / "artifacts" / "demo"
    command = [
        *("--model", str(demo / "model"), "--artifacts", str(demo / "guards" / "ksd-mathematics")),
        *("--cells", "harmless-everyday", "conversation/first", "--limit", "2", "--work", str(tmp_path / "work")),
    ]
    main(command)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["cell"] for row in found["rows"]] == ["harmless-everyday", *conversations.NAMES[:3]]
    assert {(row["skill"], row["guard"]) for row in found["rows"]} == {("mathematics", "ksd-mathematics")}
    assert found["other_text_tokens"] == [300], "the demo's context holds no longer text"
    written = json.loads((tmp_path / "results" / "asked.model.json").read_text(encoding="utf-8"))
    assert written["rows"] == found["rows"]
    monkeypatch.setattr("benchmarks.asked.__main__.running_server", None)  # all is kept, so none is started
    main(command)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == found["rows"]
    with pytest.raises(SystemExit, match="got no artifact of code"):
        main([*command, "--skills", "code"])
