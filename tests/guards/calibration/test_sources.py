"""Forget and retain sources: what is read, and what each defect says."""

import json
import weakref
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from guards.calibration import sources
from guards.calibration.corpus import encode_corpora
from guards.calibration.data_files import read_file
from guards.calibration.data_rows import DataRow
from guards.calibration.sources import Source, parse_source, read_source, read_table, refuse_overlap, seeded_rank
from guards.errors import DataError
from guards.model.encoding import TextCodec
from tests.guards.tiny import tiny_tokenizer


def _write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.jsonl", '{"prompt": "one", "n": 1}\n\n{"prompt": "two", "n": 2}\n', ("one", "two")),
        ("a.jsonl", '"one"\n"two"', ("one", "two")),
        ("a.json", '[{"question": "one"}, {"question": "two"}]', ("one", "two")),
        ("a.json", '{"question": "one"}\n{"question": "two"}\n', ("one", "two")),
        ("a.csv", 'id,text\n1,"one, and"\n2,two\n', ("one, and", "two")),
        ("a.txt", "one\n\n  two \r\n", ("one", "two")),
        ("a.jsonl", '\ufeff{"text": "one"}\n', ("one",)),
        ("a.jsonl", '{"text": "same"}\n{"text": "same"}\n{"text": "  "}\n', ("same",)),
        ("a.jsonl", '{"text": "t", "prompt": "p", "question": "q"}\n', ("p",)),
        ("a.jsonl", '{"text": "a\u2028b"}\n', ("a\u2028b",)),
    ],
)
def test_reads_every_format(tmp_path: Path, name: str, content: str, wanted: tuple[str, ...]) -> None:
    assert read_source(_write(tmp_path, name, content)).texts == wanted


ROWS = "\n".join(
    json.dumps({"task_id": n, "subject": "even" if n % 2 == 0 else "odd", "code": f"c{n}", "text": f"t{n}"})
    for n in range(1, 13)
)


@pytest.mark.parametrize(
    ("suffix", "wanted"),
    [
        ("?task_id=3..5", ["t3", "t4", "t5"]),
        ("?task_id=11..", ["t11", "t12"]),
        ("?task_id=..2", ["t1", "t2"]),
        ("?task_id=7", ["t7"]),
        ("?subject=even&task_id=..4", ["t2", "t4"]),
        ("?subject=even&task_id=..4#code", ["c2", "c4"]),
        ("?subject=n..z&task_id=..3", ["t1", "t3"]),
    ],
)
def test_filters_rows_and_picks_fields(tmp_path: Path, suffix: str, wanted: list[str]) -> None:
    path = _write(tmp_path, "rows.jsonl", ROWS)
    source = read_source(path + suffix)
    assert list(source.texts) == wanted
    assert source.name == f"{tmp_path.name}/rows.jsonl{suffix}"


@pytest.mark.parametrize(
    ("name", "content", "suffix", "message"),
    [
        ("a.jsonl", None, "", "no such file"),
        ("a.jsonl", "", "", "the file is empty"),
        ("a.jsonl", " \n\n", "", "the file is empty"),
        ("a.json", "[]", "", "no rows"),
        ("a.csv", "text\n", "", "no rows"),
        ("a.jsonl", '{"text": "x"}\n{"text": \n', "", r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', "", r"a\.jsonl:2: got a list"),
        ("a.json", '{"text": "x"}', "", "got a dict, wanted a list"),
        ("a.json", '{"text": "x"}\n{"text": ', "", r"a\.json:2: not valid JSON"),
        (
            "a.csv",
            "id,text\n1,x\n2\n",
            "",
            r"a\.csv:3: got 1 cells parted by ',', wanted 2 as in the header \(id, text\)",
        ),
        ("a.csv", 'text\n"open\n', "", "not valid CSV"),
        ("a.csv", "text,text\nx,y\n", "", "named twice"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "", r"a\.jsonl:2: not UTF-8 \(byte 0xff\)"),
        ("a.jsonl", '{"body": "x", "id": 3}', "", "none of the fields .* found body, id"),
        ("a.jsonl", '{"text": "x"}', "#body", "no field 'body'; found text"),
        ("a.jsonl", '{"text": "x"}\n{"body": "y"}', "", r"a\.jsonl:2: got no field 'text'; found body"),
        ("a.jsonl", '{"text": 3}', "", "got int, wanted text"),
        ("a.jsonl", '{"text": "x"}', "?id=3", "no key 'id' to filter by; found text"),
        ("a.jsonl", '{"text": "x", "id": 4}', "?id=5..", "no example out of 1 rows"),
        ("a.jsonl", '{"text": "x", "id": 4}', "?id=..", "got condition 'id=..'"),
        ("a.jsonl", '{"text": "x", "id": 4}', "?id", "got condition 'id'"),
        ("a.jsonl", '{"text": "x"}', "#", "without a field name"),
        ("a.txt", "x", "#text", "has no fields"),
        ("a.parquet", "x", "", "not a valid .parquet file"),
        ("a.doc", "x", "", r"got suffix '.doc', wanted one of .jsonl"),
        ("a.jsonl.gz", "x", "", "cannot be decompressed"),
        ("a.jsonl.zst", "x", "", "cannot be decompressed"),
    ],
)
def test_refuses_a_defect(tmp_path: Path, name: str, content: str | bytes | None, suffix: str, message: str) -> None:
    path = str(tmp_path / name) if content is None else _write(tmp_path, name, content)
    with pytest.raises(DataError, match=message):
        read_source(path + suffix)


@pytest.mark.parametrize("location", ["hf:", "hf:name", "hf:name:config", "hf:@train"])
def test_refuses_a_hub_name_without_split(location: str) -> None:
    with pytest.raises(DataError, match="wanted hf:NAME"):
        read_source(location)


def test_refuses_an_empty_location() -> None:
    with pytest.raises(DataError, match="no file or data set"):
        parse_source("?id=3")


def test_limit_is_seeded_and_ignores_the_order_of_rows(tmp_path: Path) -> None:
    lines = ROWS.split("\n")
    forward = _write(tmp_path, "a.jsonl", "\n".join(lines))
    backward = _write(tmp_path, "b.jsonl", "\n".join(reversed(lines)))
    first = read_source(forward, limit=5, seed=1).texts
    assert len(first) == 5
    assert set(first) == set(read_source(backward, limit=5, seed=1).texts)
    assert set(first) != set(read_source(forward, limit=5, seed=2).texts)
    with pytest.raises(DataError, match="at least 1"):
        read_source(forward, limit=0)


def test_the_digest_covers_exactly_the_texts_used(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", ROWS)
    whole, part = read_source(path), read_source(path + "?task_id=1..3")
    assert whole.sha256 != part.sha256
    assert part.sha256 == Source("elsewhere", ("t1", "t2", "t3")).sha256
    assert Source("a", ("x\ny",)).sha256 != Source("a", ("x", "y")).sha256


def test_a_text_on_both_sides_is_refused() -> None:
    forget, retain = Source("f", ("a", "b")), Source("r", ("b", "c"))
    refuse_overlap([forget], [Source("r", ("c",))])
    with pytest.raises(DataError, match=r"1 text\(s\) .* first 'b' in f and r"):
        refuse_overlap([forget], [retain])


BLANKS = ("x", "x\n", "  x", "\u2003x\t", "y\n", "y", "x y")
"""A chat template trims them: of each two that differ by these alone one would be fitted and the other reported."""


def test_texts_that_differ_by_blanks_around_them_are_one(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, BLANKS)))
    source = read_source(path)
    assert (source.texts, source.rows, source.repeats) == (("x", "y\n", "x y"), 7, 4), "the first of each as it is"
    given = [Source("a", BLANKS[:3]), Source("b", BLANKS[3:])]
    forget, _ = encode_corpora(given, [Source("r", ("z",))], ("bare",), TextCodec(tiny_tokenizer()), None)
    assert forget.texts == ("x", "y\n", "x y")
    with pytest.raises(DataError, match=r"1 text\(s\) .* first 'x' in f and r"):
        refuse_overlap([Source("f", ("x",))], [Source("r", ("z", "x\n"))])


def test_rows_are_kept_no_longer_than_their_text_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source of many long fields, of which `limit` keeps few texts, need not fit the memory."""
    alive: list[weakref.ref[DataRow]] = []
    most = 0

    def rows(path: Path) -> Iterator[DataRow]:
        nonlocal most
        for row in read_file(path):
            alive.append(weakref.ref(row))
            yield row
            del row
            most = max(most, sum(each() is not None for each in alive))

    monkeypatch.setattr(sources, "read_file", rows)
    path = _write(tmp_path, "a.jsonl", ROWS)
    assert len(read_source(path, limit=2).texts) == 2
    assert len(alive) == len(ROWS.split("\n"))
    assert most <= 1
    assert len(read_table(path).rows) == len(ROWS.split("\n"))
    assert most > 1, "positive control: they are kept where whole rows are asked for"


def test_the_seeded_order_is_a_permutation() -> None:
    texts = [f"t{n}" for n in range(50)]
    order = seeded_rank(texts, 0)
    assert sorted(order) == list(range(50))
    assert order != list(range(50))
    assert order != seeded_rank(texts, 1)


def test_a_missing_datasets_package_is_named_with_its_command() -> None:
    if find_spec("datasets") is not None:
        pytest.skip("datasets is installed")
    with pytest.raises(DataError, match=r"pip install 'skillguard\[datasets\]'"):
        read_source("hf:openai/gsm8k:main@train")
