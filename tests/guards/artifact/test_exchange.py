"""An artifact that is replaced while it is read: always one version, whole, and never none."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from guards.artifact import exchange
from guards.artifact.store import TENSORS_NAME, read_artifact
from guards.errors import ArtifactError
from tests.guards.samples import cube, cubes, files, write

SWAPS = 400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The older version."""
    return write(tmp_path / "sums")


@pytest.fixture
def digests(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Of the older and the newer version."""
    other = write(tmp_path_factory.mktemp("other") / "sums", guard=cubes(cube(seed=9)))
    return read_artifact(folder).digest, read_artifact(other).digest


def write_newer(folder: Path) -> None:
    write(folder, guard=cubes(cube(seed=9)))


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that cannot swap two names in one step."""
    monkeypatch.setattr(exchange, "_exchange", lambda one, other: False)


def after_renames(monkeypatch: pytest.MonkeyPatch, see: Callable[[], None]) -> None:
    """Calls `see` after every rename."""
    rename = Path.rename

    def spied(self: Path, target: Path) -> Path:
        renamed = rename(self, target)
        see()
        return renamed

    monkeypatch.setattr(Path, "rename", spied)


def test_no_read_is_refused_beside_a_writer(
    folder: Path, digests: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # more swaps a second
    seen: list[str] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                seen.append(read_artifact(folder).digest)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for swap in range(SWAPS):
            write(folder, guard=cubes(cube(seed=0 if swap % 2 else 9)))
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert failures == []
    assert set(seen) == set(digests), "positive control: both versions were read"
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_a_swap_between_opening_the_folder_and_its_files_gives_the_newer_version(
    folder: Path, digests: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir, swapped = os.listdir, False

    def swap(path: int) -> list[str]:
        nonlocal swapped
        if not swapped:
            swapped = True
            write_newer(folder)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", swap)
    assert read_artifact(folder).digest == digests[1]


def test_a_swap_between_the_two_files_mixes_nothing(
    folder: Path, digests: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_regular = exchange._open_regular

    def swap(name: str, descriptor: int) -> object:
        if name == TENSORS_NAME and read_artifact_plainly(folder) == digests[0]:
            write_newer(folder)
        return open_regular(name, descriptor)

    def read_artifact_plainly(where: Path) -> str:
        with pytest.MonkeyPatch.context() as undone:
            undone.setattr(exchange, "_open_regular", open_regular)
            return read_artifact(where).digest

    monkeypatch.setattr(exchange, "_open_regular", swap)
    assert read_artifact(folder).digest == digests[1]


def test_a_folder_that_vanishes_while_it_is_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(path: int) -> list[str]:
        for name in files(folder):
            (folder / name).unlink()
        folder.rmdir()
        return []

    monkeypatch.setattr(os, "listdir", remove)
    with pytest.raises(ArtifactError, match="no such folder"):
        read_artifact(folder)


def test_a_folder_that_cannot_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: int) -> list[str]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "listdir", fail)
    with pytest.raises(ArtifactError, match=r"cannot be read \(Input/output error\)"):
        read_artifact(folder)


@pytest.mark.usefixtures("no_exchange")
class TestWithoutExchange:
    """Two renames instead of one step: between them the older version is read where it waits."""

    def test_after_every_step_one_version_is_read(
        self, folder: Path, digests: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[bool, str]] = []
        after_renames(monkeypatch, lambda: seen.append((folder.exists(), read_artifact(folder).digest)))
        write_newer(folder)
        assert seen == [(False, digests[0]), (True, digests[1]), (True, digests[1])]
        assert read_artifact(folder).name == "sums"
        assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]

    def test_a_writer_that_dies_between_leaves_the_older_version(
        self, folder: Path, digests: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die() -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as dying:
            after_renames(dying, die)
            with pytest.raises(KeyboardInterrupt):
                write_newer(folder)
        assert not folder.exists(), "positive control: it died between the two renames"
        assert read_artifact(folder).digest == digests[0]
        write_newer(folder)
        assert read_artifact(folder).digest == digests[1]
        assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]

    def test_a_failing_rename_puts_the_older_version_back(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before, rename, calls = files(folder), Path.rename, 0

        def fail_second(self: Path, target: Path) -> Path:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise OSError(5, "Input/output error")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail_second)
        with pytest.raises(OSError, match="Input/output"):
            write_newer(folder)
        assert files(folder) == before
        assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]

    def test_a_swap_while_the_waiting_version_is_opened_gives_the_newer_one(
        self, folder: Path, digests: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The reader finds the older version waiting, and the writer finishes before it has opened its files."""
        waiting = folder.with_name(f".{folder.name}-old")
        newer = write(folder.with_name("newer"), guard=cubes(cube(seed=9)))
        folder.rename(waiting)
        listdir = os.listdir

        def finish(path: int) -> list[str]:
            if waiting.exists():
                newer.rename(folder)
                for name in files(waiting):
                    (waiting / name).unlink()
                waiting.rmdir()
            return listdir(path)

        monkeypatch.setattr(os, "listdir", finish)
        assert read_artifact(folder).digest == digests[1]

    def test_the_waiting_version_is_not_removed_where_it_is_read(
        self, folder: Path, digests: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A reader that opened it finds it elsewhere, or its files gone, and takes the one that came."""
        removed: list[str] = []
        rmtree = shutil.rmtree

        def spied(path: Path, *, ignore_errors: bool) -> None:
            if path.exists():
                removed.append(path.name)
            rmtree(path, ignore_errors=ignore_errors)

        monkeypatch.setattr(shutil, "rmtree", spied)
        write_newer(folder)
        assert len(removed) == 1
        assert removed[0] != f".{folder.name}-old"
        assert read_artifact(folder).digest == digests[1]

    def test_a_waiting_folder_that_lacks_a_file_is_refused(self, folder: Path) -> None:
        (folder / TENSORS_NAME).unlink()
        folder.rename(folder.with_name(f".{folder.name}-old"))
        with pytest.raises(ArtifactError, match=f"no file '{TENSORS_NAME}'"):
            read_artifact(folder)
