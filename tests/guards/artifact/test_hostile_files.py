"""Artifacts whose files are sound by themselves and meant to harm: numbers, headers, names, and files that are none."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from guards.artifact.store import MANIFEST_NAME, MAX_HEADER_BYTES, TENSORS_NAME, read_artifact, write_artifact
from guards.calibration.entry import Entry
from guards.errors import ArtifactError
from guards.methods.registry import (
    CUBE,
    LUNAR,
    LUNAR_ABSTAIN,
    LUNAR_TRAINED,
    NEURON_ADJUST,
    PROBE,
    PROBE_PROJECT,
    RMU,
    SELECTIVE_PRUNING,
    SPANS,
    load_guard,
)
from tests.guards.samples import SAMPLES, manifest, seal, write

ZERO, INFINITE = (1e-46, 1e-39), (1e39, 1e308)
"""In float32: nothing, or what a device may take for nothing; and more than there is."""
NUMBERS: dict[Entry, tuple[tuple[str | int, ...], ...]] = {
    CUBE: (("cubes", 0, "tau"), ("cubes", 0, "k")),
    **dict.fromkeys(
        (SPANS, PROBE, LUNAR_ABSTAIN),
        (
            ("terms", 0, "offset"),
            ("judgements", 0, "tau"),
            ("judgements", 0, "kappa"),
            ("judgements", 1, "tau"),
            ("judgements", 1, "weight"),
        ),
    ),
    NEURON_ADJUST: (("fraction",),),
    SELECTIVE_PRUNING: (("fraction",), ("attention_fraction",)),
    PROBE_PROJECT: (("beta",), ("layers", 0, "b"), ("layers", 0, "usual")),
    LUNAR: (("strength",), ("ridge",), ("layers", 0, "usual")),
    LUNAR_TRAINED: (("strength",), ("layers", 0, "usual")),
    **dict.fromkeys(RMU, (("layers", 0, "usual"),)),
}
CASES = [
    pytest.param(entry, at, value, id=f"{entry.name}-{entry.variant or ''}-{'.'.join(map(str, at))}-{value}")
    for entry, fields in NUMBERS.items()
    for at in fields
    for value in (*ZERO, *INFINITE)
]


def floats(value: Any, at: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Where a record holds numbers with a point."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {found for key, each in pairs for found in floats(each, (*at, key))}
    return {at} if isinstance(value, float) else set()


def test_every_number_that_a_guard_computes_with_is_tried() -> None:
    for entry, make in SAMPLES.items():
        parameters, _ = entry.dump(make())
        kinds = {tuple("#" if isinstance(each, int) else each for each in at) for at in floats(parameters)}
        tried = {tuple("#" if isinstance(each, int) else each for each in at) for at in NUMBERS[entry]}
        assert kinds == tried


@pytest.mark.parametrize(("entry", "at", "value"), CASES)
def test_a_number_that_float32_does_not_hold(
    tmp_path: Path, entry: Entry, at: tuple[str | int, ...], value: float
) -> None:
    parameters, tensors = entry.dump(SAMPLES[entry]())
    record: Any = parameters
    for key in at[:-1]:
        record = record[key]
    record[at[-1]] = value
    folder = tmp_path / "a"
    write_artifact(folder, manifest(entry.name, parameters), tensors)
    with pytest.raises(ArtifactError, match=str(at[-1])):
        load_guard(read_artifact(folder))


@pytest.mark.parametrize("value", [1e-39, 3e38])
@pytest.mark.parametrize(("entry", "name"), [(CUBE, "cube.0.std"), (NEURON_ADJUST, "layer.0.forget_std")])
def test_a_deviation_that_cannot_be_divided_by(tmp_path: Path, entry: Entry, name: str, value: float) -> None:
    parameters, tensors = entry.dump(SAMPLES[entry]())
    other = tensors[name].clone()
    other[0] = value
    write_artifact(tmp_path / "a", manifest(entry.name, parameters), {**tensors, name: other})
    with pytest.raises(ArtifactError, match="standard deviation"):
        load_guard(read_artifact(tmp_path / "a"))


def test_weights_that_are_all_nearly_nothing(tmp_path: Path) -> None:
    parameters, tensors = SPANS.dump(SAMPLES[SPANS]())
    nearly = {"term.0.weight": torch.full_like(tensors["term.0.weight"], 1e-39)}
    write_artifact(tmp_path / "a", manifest("ksd", parameters), {**tensors, **nearly})
    with pytest.raises(ArtifactError, match="score nothing"):
        load_guard(read_artifact(tmp_path / "a"))


@pytest.mark.parametrize("name", ["two\nlines", "a b", "-a", ".a", "a" * 65, "naïve", "a@b"])
def test_a_name_that_no_guard_may_have(tmp_path: Path, name: str) -> None:
    write(tmp_path / "sums").rename(tmp_path / name)
    with pytest.raises(ArtifactError, match="a guard has its folder's name") as refusal:
        read_artifact(tmp_path / name)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ArtifactError, match="a guard has its folder's name"):
        write(tmp_path / name)


def test_a_header_that_takes_minutes_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "sums")
    entry = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    header = ("{" + ",".join(f'"{index:06}":{entry}' for index in range(20_000)) + "}").encode()
    assert len(header) > MAX_HEADER_BYTES
    (folder / TENSORS_NAME).write_bytes(len(header).to_bytes(8, "little") + header)
    seal(folder)
    monkeypatch.setattr("guards.artifact.store.load_tensors", lambda *_: pytest.fail("parsed"))
    with pytest.raises(ArtifactError, match=f"got a header of {len(header)} bytes, wanted at most {MAX_HEADER_BYTES}"):
        read_artifact(folder)


def test_a_tensor_that_is_there_twice(tmp_path: Path) -> None:
    folder = write(tmp_path / "sums")
    path = folder / TENSORS_NAME
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    twice = json.dumps(header)[:-1] + f', "cube.0.std": {json.dumps(header["cube.0.mean"])}}}'
    path.write_bytes(len(twice).to_bytes(8, "little") + twice.encode() + blob[8 + length :])
    seal(folder)
    with pytest.raises(ArtifactError, match="a key is given twice"):
        read_artifact(folder)


@pytest.mark.parametrize("name", [MANIFEST_NAME, TENSORS_NAME])
@pytest.mark.parametrize("kind", ["pipe", "device", "link to a pipe", "loop", "folder"])
def test_a_file_that_is_none(tmp_path: Path, name: str, kind: str) -> None:
    """None of them is waited for."""
    path = write(tmp_path / "sums") / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    with pytest.raises(ArtifactError):
        read_artifact(tmp_path / "sums")


def test_an_empty_file_of_tensors(tmp_path: Path) -> None:
    folder = write(tmp_path / "sums")
    for blob in (b"", b"\x05", save({})[:9]):
        (folder / TENSORS_NAME).write_bytes(blob)
        seal(folder)
        with pytest.raises(ArtifactError, match="not a safetensors file we read"):
            read_artifact(folder)
