"""The shipped texts: well formed, each once, each with its language."""

import json

import pytest

from guards.calibration.material import FOLDER, LOOKALIKES, read_material
from guards.calibration.sources import Source, refuse_overlap

FILES = sorted(FOLDER.glob("*.jsonl"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_line_is_a_record_of_one_language_and_there_once(path: object) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()  # type: ignore[attr-defined]
    rows = [json.loads(line) for line in lines]
    assert len({json.dumps(row, sort_keys=True) for row in rows}) == len(rows)
    assert all(len(row["language"]) == 2 or row["language"] == "mul" for row in rows)
    assert {row["language"] for row in rows} > {"en", "de", "zh"}
    assert all(row.get("text", "-").strip() for row in rows)


def test_conversations_are_asked_and_answered_in_turns() -> None:
    material = read_material("all")
    assert len(material.chats) >= 100
    assert len(material.tools) >= 30
    assert len(material.system_prompts) >= 80
    for messages in material.chats:
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    for tools, messages in material.tools:
        assert all(tool["type"] == "function" and tool["function"]["parameters"] for tool in tools)
        assert messages[-1]["role"] == "user"


def test_less_of_it_where_a_language_is_the_skill() -> None:
    every, english = read_material("all"), read_material("english")
    assert [source.name for source in every.sources] == [f"skillguard/{name}" for name in LOOKALIKES]
    for more, fewer in zip(every.sources, english.sources, strict=True):
        assert 100 <= len(fewer.texts) < len(more.texts)
        assert set(fewer.texts) < set(more.texts)
    assert read_material("none").sources == ()


def test_no_text_is_in_two_files() -> None:
    texts = [text for source in read_material("all").sources for text in source.texts]
    assert len(set(texts)) == len(texts)
    refuse_overlap([Source("other", ("a question of mine",))], read_material("all").sources)
