"""Which text a row is: conversations, Alpaca, preferences, and what is said of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from guards.calibration.sources import Source, read_source
from guards.errors import DataError

TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "answer"},
    {"role": "user", "content": "last"},
    {"role": "assistant", "content": "done"},
]
SHARED = [{"from": "human", "value": "first"}, {"from": "gpt", "value": "a"}, {"from": "human", "value": "last"}]


def _read(folder: Path, *rows: Any, suffix: str = "", field: str | None = None) -> Source:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_source(f"{path}{suffix}", field=field)


@pytest.mark.parametrize(
    ("row", "text", "field"),
    [
        ({"messages": TALK}, "last", "messages"),
        ({"id": "x", "conversations": SHARED}, "last", "conversations"),
        ({"conversation": TALK[:3]}, "first", "conversation"),
        ({"prompt": TALK[:4], "chosen": TALK[4:], "rejected": TALK[4:]}, "last", "prompt"),
        ({"prompt": "asked", "chosen": "good", "rejected": "bad"}, "asked", "prompt"),
        ({"chosen": TALK, "rejected": TALK}, "last", "chosen"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            "a\nb",
            "messages",
        ),
        ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, "Add.\n\n1 and 2", "instruction and input"),
        ({"instruction": "Say hi.", "input": "", "output": "hi"}, "Say hi.", "instruction"),
        ({"instruction": "Say hi.", "input": None, "output": "hi"}, "Say hi.", "instruction"),
        (
            {"instruction": "Who?", "context": "He is Bo.", "response": "Bo"},
            "Who?\n\nHe is Bo.",
            "instruction and context",
        ),
        ({"instruction": "", "input": "1 and 2"}, "1 and 2", "instruction and input"),
    ],
)
def test_the_text_of_a_row(tmp_path: Path, row: Any, text: str, field: str) -> None:
    source = _read(tmp_path, row)
    assert (source.texts, source.field) == ((text,), field)


def test_a_later_row_may_be_the_first_with_an_input(tmp_path: Path) -> None:
    source = _read(tmp_path, {"instruction": "Say hi."}, {"instruction": "Add.", "input": "1"})
    assert source.texts == ("Say hi.", "Add.\n\n1")
    assert source.field == "instruction and input"


def test_a_field_that_is_named_is_taken_alone(tmp_path: Path) -> None:
    rows = {"instruction": "Add.", "input": "1 and 2", "talk": TALK}
    assert _read(tmp_path, rows, suffix="#instruction").texts == ("Add.",)
    assert _read(tmp_path, rows, field="input").texts == ("1 and 2",)
    assert _read(tmp_path, rows, field="talk").texts == ("last",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": TALK[:1]}, r"rows\.jsonl:1: field 'messages': got no message of user or human"),
        ({"messages": []}, r"field 'messages': got list, wanted text or a list of messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            r"messages\[0\]: got a part of type 'image_url'",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\]: got int"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: got NoneType"),
        ({"chosen": "a", "rejected": "b"}, "got none of the fields prompt, question"),
        ({"instruction": "Add.", "input": 3}, "field 'input': got int, wanted text"),
    ],
)
def test_a_row_without_a_text(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _read(tmp_path, row)


def test_rows_and_repeats_are_counted(tmp_path: Path) -> None:
    source = _read(tmp_path, *[{"question": each} for each in ("a", "b", "a", " ", "a")])
    assert (source.texts, source.field, source.rows, source.repeats) == (("a", "b"), "question", 4, 2)
