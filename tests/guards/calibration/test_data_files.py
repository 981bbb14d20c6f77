"""Data files as people have them: what is read of each, and what each defect says."""

import bz2
import csv
import gzip
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from guards.calibration.sources import parse_source, read_source
from guards.errors import DataError

ROWS = [{"id": n, "text": f"text {n}"} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TEXTS = ("text 0", "text 1", "text 2")


def _zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return bytes(sink.getvalue())


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": _zstd,
    ".GZ": gzip.compress,
}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ndjson", LINES),
        ("a.JSONL", LINES),
        ("a.Json", json.dumps(ROWS)),
        ("a.tsv", "id\ttext\n0\ttext 0\n1\ttext 1\n2\ttext 2\n"),
        ("a.CSV", "id;text\n0;text 0\n1;text 1\n2;text 2\n"),
        ("a.csv", "id\ttext\n0\ttext 0\n1\ttext 1\n2\ttext 2\n"),
        ("a.csv", '"id;one, two","text"\n0,text 0\n1,text 1\n2,text 2\n'),
        ("a.csv", "text\ntext 0\ntext 1\ntext 2\n"),
    ],
)
def test_every_ending_and_delimiter(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_source(str(tmp_path / name)).texts == TEXTS


@pytest.mark.parametrize("packed", sorted(PACKERS))
def test_a_compressed_file(tmp_path: Path, packed: str) -> None:
    (tmp_path / f"a.jsonl{packed}").write_bytes(PACKERS[packed](LINES.encode()))
    (tmp_path / f"a.csv{packed}").write_bytes(PACKERS[packed](b"text\ntext 0\ntext 1\ntext 2\n"))
    (tmp_path / f"a.txt{packed}").write_bytes(PACKERS[packed](b"text 0\ntext 1\ntext 2\n"))
    for name in ("a.jsonl", "a.csv", "a.txt"):
        assert read_source(str(tmp_path / f"{name}{packed}"), field="text").texts == TEXTS


def test_a_compressed_file_that_was_cut_short(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode() * 100)[:-20])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: cannot be decompressed"):
        read_source(str(tmp_path / "a.jsonl.gz"))


def test_tables(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        assert read_source(f"{tmp_path / name}").texts == TEXTS
        assert read_source(f"{tmp_path / name}?id=1..").texts == TEXTS[1:]


def test_a_table_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    for name in ("pyarrow", "pyarrow.ipc", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"pip install 'skillguard\[parquet\]'"):
        read_source(str(tmp_path / "a.parquet"))


HALF = "\\ud83d"
"""Half an emoji, as JSON spells it."""


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.jsonl", f'{{"text": "x"}}\n{{"text": "cut {HALF}"}}\n', r"a\.jsonl:2: field 'text'"),
        ("a.jsonl", f'"{HALF}"\n', r"a\.jsonl:1: field 'text'"),
        ("a.json", f'[{{"text": "x", "answer": ["{HALF}"]}}]', r"a\.json\[0\]: field 'answer'"),
        ("a.jsonl", f'{{"messages": [{{"role": "user", "content": "{HALF}"}}]}}\n', r"a\.jsonl:1: field 'messages'"),
        ("a.jsonl", f'{{"text": "x", "{HALF}": 1}}\n', r"a\.jsonl:1: field "),
    ],
)
def test_half_a_character_is_refused_with_its_row(tmp_path: Path, name: str, content: str, where: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=where + r".*half a character") as caught:
        read_source(str(tmp_path / name))
    str(caught.value).encode()


def test_a_whole_character_is_text(tmp_path: Path) -> None:
    """Positive control: both halves."""
    (tmp_path / "a.jsonl").write_text(f'{{"text": "{HALF}\\ude00"}}\n')
    assert read_source(str(tmp_path / "a.jsonl")).texts == ("😀",)


def test_limits_of_libraries_are_not_the_users(tmp_path: Path) -> None:
    text = "long " * 40_000
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], ["9" * 5000, text]])
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text})[:-1] + ', "id": ' + "9" * 5000 + "}\n")
    for name in ("a.csv", "a.jsonl"):
        assert read_source(str(tmp_path / name)).texts == (text,)


@pytest.mark.parametrize("name", ["C#_problems.jsonl", "what?.jsonl", "a?id=1#x.jsonl", "50%25.jsonl", "a@train.jsonl"])
def test_a_name_that_exists_is_a_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "one", "id": 1, "code": "a"}\n{"text": "two", "id": 2, "code": "b"}\n')
    path = str(tmp_path / name)
    assert read_source(path).texts == ("one", "two")
    assert read_source(f"{path}?id=2#code").texts == ("b",)
    assert read_source(path).name == f"{tmp_path.name}/{name}"


def test_what_means_something_can_be_escaped(tmp_path: Path) -> None:
    rows = [{"a&b": "Q&A", "f#g": "one"}, {"a&b": "1..2", "f#g": "two"}, {"a&b": "5%", "f#g": "three"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = str(tmp_path / "a.jsonl")
    assert read_source(f"{path}?a%26b=Q%26A#f%23g").texts == ("one",)
    assert read_source(f"{path}?a%26b=1%2E%2E2#f#g").texts == ("two",)
    assert read_source(f"{path}?a%26b=5%#f#g").texts == ("three",)
    with pytest.raises(DataError, match=r"got condition 'A'.*%26 stands for &"):
        parse_source(f"{path}?title=Q&A")


def _write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".jsonl").write_text(json.dumps({"text": text}) + "\n")
    return folder


def test_a_folder_of_files(tmp_path: Path) -> None:
    folder = _write(tmp_path / "chats", b="two", a="one")
    for name in ("README.md", "dataset_info.json", ".hidden.jsonl", "LICENSE.txt"):
        (folder / name).write_text("{}")
    source = read_source(str(folder))
    assert (source.texts, source.rows, source.name) == (("one", "two"), 2, f"{tmp_path.name}/chats")
    assert read_source(f"{folder}/?text=two").texts == ("two",)


def test_a_split_is_named_where_a_folder_has_several(tmp_path: Path) -> None:
    layout = {"train-00000-of-00002": "a", "train-00001-of-00002": "b", "test-00000-of-00001": "c"}
    folder = _write(tmp_path / "set", **{f"data__{name}": text for name, text in layout.items()})
    assert read_source(f"{folder}@train").texts == ("a", "b")
    assert read_source(f"{folder}@test#text").texts == ("c",)
    with pytest.raises(DataError, match=r"holds the splits test, train: name one, such as .*set@test"):
        read_source(str(folder))
    with pytest.raises(DataError, match=r"no file of split 'dev'; found test, train"):
        read_source(f"{folder}@dev")


def test_data_in_several_subfolders_is_not_guessed_at(tmp_path: Path) -> None:
    folder = _write(tmp_path / "set", main__train="a", socratic__train="b")
    with pytest.raises(DataError, match=r"holds data in .*main, .*socratic: name one"):
        read_source(f"{folder}@train")
    assert read_source(f"{folder}/main").texts == ("a",)


def test_a_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder without a data file"):
        read_source(str(tmp_path))


def test_what_the_datasets_library_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {
        name: datasets.Dataset.from_list([{"text": f"{name} {n}"} for n in range(3)]) for name in ("train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts["train"].save_to_disk(tmp_path / "one", num_shards=2)
    assert read_source(f"{tmp_path / 'both'}@train").texts == read_source(f"{tmp_path / 'one'}").texts
    assert read_source(f"{tmp_path / 'one'}").texts == ("train 0", "train 1", "train 2")
