"""That a model's digest is of the bytes that were loaded, and when it is believed without reading them again."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from guards.errors import UnsupportedModelError
from guards.inside.transformers import loading
from guards.inside.transformers.loading import load_model
from guards.model.digests import DigestCache
from guards.model.folder import check_files
from guards.model.weights import WeightFiles, weights_sha256
from tests.guards.tiny import save_tiny

WEIGHTS = "model.safetensors"
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def other_bytes(folder: Path) -> bytes:
    """Other weights of the same model."""
    other = folder.parent / "other.safetensors"
    save_file({name: each + 1 for name, each in load_file(folder / WEIGHTS).items()}, other, metadata={"format": "pt"})
    return other.read_bytes()


def in_place(path: Path, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(data)


def by_rename(path: Path, data: bytes) -> None:
    path.with_suffix(".new").write_bytes(data)
    path.with_suffix(".new").replace(path)


def removed(path: Path, _: bytes) -> None:
    path.unlink()


def in_place_with_its_old_time(path: Path, data: bytes) -> None:
    found = path.stat()
    in_place(path, data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


CHANGES = pytest.mark.parametrize(
    "change", [in_place, by_rename, removed, in_place_with_its_old_time], ids=lambda each: each.__name__
)


@CHANGES
def test_weights_that_change_while_they_are_loaded(
    folder: Path, change: Callable[[Path, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, load = other_bytes(folder), loading._load

    def meanwhile(*arguments: Any, **named: Any) -> Any:
        model = load(*arguments, **named)
        change(folder / WEIGHTS, other)
        return model

    monkeypatch.setattr(loading, "_load", meanwhile)
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors: changed while the model was loaded"):
        load_model(folder, "cpu")


def test_what_is_loaded_is_what_was_opened(folder: Path) -> None:
    """Another file by that name is not looked at, also where nobody would ask for the digest."""
    wanted = load_file(folder / WEIGHTS)
    with WeightFiles(folder) as files:
        by_rename(folder / WEIGHTS, other_bytes(folder))
        got = files.tensors(torch.float32, CPU)
        assert all(torch.equal(got[name][...], wanted[name]) for name in wanted)
        with pytest.raises(UnsupportedModelError, match="changed while"):
            files.digest()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_runs_does_not_change_with_its_file(folder: Path, dtype: str) -> None:
    loaded = load_model(folder, "cpu", dtype)
    before = {name: each.clone() for name, each in loaded.model.state_dict().items()}
    in_place(folder / WEIGHTS, other_bytes(folder))
    assert all(torch.equal(each, before[name]) for name, each in loaded.model.state_dict().items())
    assert any(
        not torch.equal(each, before[name])
        for name, each in load_model(folder, "cpu", dtype).model.state_dict().items()
    ), "the control: the file has changed"


def test_a_file_elsewhere_that_the_configuration_names_is_not_loaded(folder: Path) -> None:
    """transformers takes weights by the name in `transformers_weights`."""
    wanted = load_model(folder, "cpu").model.state_dict()
    (folder / "sub").mkdir()
    (folder / "sub" / "evil.safetensors").write_bytes(other_bytes(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "sub/evil.safetensors"}))
    assert all(torch.equal(each, wanted[name]) for name, each in load_model(folder, "cpu").model.state_dict().items())


@pytest.mark.parametrize("place", ["sub/model.safetensors", "../model/model.safetensors", "/etc/model.safetensors"])
def test_an_index_that_names_files_outside_of_the_folder(folder: Path, place: str) -> None:
    (folder / "sub").mkdir()
    shutil.copy(folder / WEIGHTS, folder / "sub" / WEIGHTS)
    names = load_file(folder / WEIGHTS)
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, WEIGHTS)}))
    check_files(folder)
    index.write_text(json.dumps({"weight_map": {**dict.fromkeys(names, WEIGHTS), "lm_head.weight": place}}))
    with pytest.raises(UnsupportedModelError, match=f"got no {place}"):
        check_files(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "more.bin"])
def test_a_pipe_in_the_folder_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UnsupportedModelError, match=f"{name} is a pipe|got no .safetensors"):
        load_model(folder, "cpu")


class TestDigests:
    """What is believed of an earlier start."""

    @pytest.fixture
    def cache(self, tmp_path: Path) -> DigestCache:
        """Asked a minute after the files were written."""
        return DigestCache(tmp_path / "cache", clock=lambda: time.time() + 60)

    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The files that were read for their digests."""
        found: list[Path] = []
        pieces = WeightFiles._pieces

        def counted(files: WeightFiles, path: Path) -> Any:
            found.append(path)
            return pieces(files, path)

        monkeypatch.setattr(WeightFiles, "_pieces", counted)
        return found

    def test_a_file_is_read_once(self, folder: Path, cache: DigestCache, reads: list[Path]) -> None:
        digest = weights_sha256(folder)
        assert [weights_sha256(folder, cache) for _ in range(3)] == [digest] * 3
        assert len(reads) == 2, "without the cache, and for it"
        assert weights_sha256(folder) == digest
        assert len(reads) == 3, "nothing is believed where there is no cache (--rehash)"

    @CHANGES
    def test_a_changed_file_is_read_again(
        self, folder: Path, cache: DigestCache, reads: list[Path], change: Callable[[Path, bytes], None]
    ) -> None:
        before = weights_sha256(folder, cache)
        change(folder / WEIGHTS, other := other_bytes(folder))
        if change is removed:
            (folder / WEIGHTS).write_bytes(other)
        assert weights_sha256(folder, cache) == weights_sha256(folder) != before

    def test_a_file_that_was_written_just_now_is_not_kept(
        self, folder: Path, tmp_path: Path, reads: list[Path]
    ) -> None:
        """It may be written again within the same tick of the clock."""
        young = DigestCache(tmp_path / "cache", clock=lambda: (folder / WEIGHTS).stat().st_ctime + 1)
        for _ in range(2):
            weights_sha256(folder, young)
        assert len(reads) == 2

    @pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
    def test_a_folder_that_others_may_write_to_is_not_believed(
        self, folder: Path, cache: DigestCache, tmp_path: Path, reads: list[Path], mode: int
    ) -> None:
        weights_sha256(folder, cache)
        (tmp_path / "cache").chmod(mode)
        weights_sha256(folder, cache)
        assert len(reads) == 2
        (tmp_path / "cache").chmod(0o700)
        weights_sha256(folder, cache)
        assert len(reads) == 2, "the control"

    def test_entries_that_are_none(self, folder: Path, cache: DigestCache, tmp_path: Path, reads: list[Path]) -> None:
        digest = weights_sha256(folder, cache)
        (entry,) = (tmp_path / "cache").iterdir()
        assert entry.stat().st_mode & 0o777 == 0o600
        right = json.loads(entry.read_text())
        lie = hashlib.sha256(b"").hexdigest()
        for wrong in (
            "",
            "[]",
            "{}",
            json.dumps({**right, "path": "/x", "sha256": lie}),
            json.dumps({**right, "sha256": 1}),
        ):
            entry.write_text(wrong)
            assert weights_sha256(folder, cache) == digest
        entry.unlink()
        entry.symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").write_text(json.dumps({**right, "sha256": lie}))
        assert weights_sha256(folder, cache) == digest

    def test_a_cache_that_cannot_be_written_is_as_if_empty(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        nowhere = DigestCache(tmp_path / "file" / "cache", clock=lambda: time.time() + 60)
        assert weights_sha256(folder, nowhere) == weights_sha256(folder)


def test_a_file_that_comes_while_the_model_is_loaded(folder: Path) -> None:
    """vLLM's workers list the folder again, and load it."""
    with WeightFiles(folder) as files:
        files.require_unchanged()
        shutil.copy(next(folder.glob("*.safetensors")), folder / "zz.safetensors")
        with pytest.raises(UnsupportedModelError, match=r"another set of \.safetensors files"):
            files.digest()
