"""A finished calibration: where it may be written, and that it is told its method."""

from collections.abc import Callable
from pathlib import Path

import pytest

import guards
from guards.artifact.store import MANIFEST_NAME, TENSORS_NAME
from guards.calibration.finished import refuse_output
from guards.errors import ArtifactError, CalibrationError
from tests.guards.samples import write


def _stray(folder: Path) -> None:
    write(folder)
    (folder / "thesis.tex").write_text("mine")


def _tensors_are_a_folder(folder: Path) -> None:
    write(folder)
    (folder / TENSORS_NAME).unlink()
    (folder / TENSORS_NAME).mkdir()


def _half(folder: Path) -> None:
    write(folder)
    (folder / TENSORS_NAME).unlink()


def _something_else(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


def _only_tensors(folder: Path) -> None:
    write(folder)
    (folder / MANIFEST_NAME).unlink()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, None),
        (write, None),
        (_half, None),
        (
            _stray,
            r"holds an artifact and also 'thesis\.tex', which replacing it would remove: move",
        ),
        (_tensors_are_a_folder, r"holds an artifact and also 'tensors\.safetensors'"),
        (_something_else, "exists and is no artifact"),
        (_only_tensors, "exists and is no artifact"),
        (lambda folder: folder.write_text("mine"), "exists and is no artifact"),
    ],
)
def test_an_output_is_refused_before_the_work_as_after_it(
    tmp_path: Path, make: Callable[[Path], object], message: str | None
) -> None:
    folder = tmp_path / "guard"
    make(folder)
    if message is None:
        refuse_output(folder, "sums")
        write(folder)
        return
    with pytest.raises(ArtifactError, match=message) as before:
        refuse_output(folder, "sums")
    with pytest.raises(ArtifactError) as after:
        write(folder)
    assert str(before.value) == str(after.value)


def test_a_skills_name_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="got skill name 'two words'"):
        refuse_output(tmp_path / "new", "two words")


def test_calibration_looks_no_method_up() -> None:
    """It is handed an entry of the registry; `guards.methods` stands on it, not the other way round."""
    rooms = sorted((Path(guards.__path__[0]) / "calibration").glob("*.py"))
    found = [room.stem for room in rooms if "guards.methods.registry import" in room.read_text()]
    assert "finished" in {room.stem for room in rooms}, "positive control"
    assert found == []
