"""The files that calibrations of real models take: readable by calibrate, of the training side only."""

from pathlib import Path

import pytest

from benchmarks import sources
from benchmarks.prompts.materials import MATERIALS
from benchmarks.prompts.splits import Split, normal_form
from guards.calibration.sources import read_source, refuse_overlap
from tests.test_prompts import write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def _check(data: Path, output: Path, limit: int) -> None:
    written = sources.write(data, output, limit=limit)
    assert set(written) == {f"{name}.jsonl" for name in sources.FILES}
    measured = {normal_form(item.text) for made in MATERIALS.values() for item in made.read(data, Split.TEST)}
    for name, count in written.items():
        if count:
            read = read_source(str(output / name))
            assert len(read.texts) == count <= limit
            assert not measured & set(map(normal_form, read.texts)), name


def test_every_file_is_read_by_calibrate_and_holds_nothing_that_is_measured(data: Path, tmp_path: Path) -> None:
    _check(data, tmp_path, limit=5)


def test_the_same_seed_draws_the_same_texts(data: Path) -> None:
    first, again, other = (sources.texts(data, ["gsm8k"], 4, seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.real
def test_the_real_files_are_full_and_skills_are_apart(shared_data: Path, tmp_path: Path) -> None:
    _check(shared_data, tmp_path, limit=300)
    assert all(path.stat().st_size for path in tmp_path.glob("*/*.jsonl"))
    by_skill = {
        skill: [read_source(str(path)) for path in sorted((tmp_path / skill).glob("*.jsonl"))]
        for skill in ("mathematics", "code", "other")
    }
    refuse_overlap(by_skill["mathematics"], by_skill["code"] + by_skill["other"])
    refuse_overlap(by_skill["code"], by_skill["mathematics"] + by_skill["other"])
