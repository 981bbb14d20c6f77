"""What is asked of an image, on folders that look like one's files. An image itself is run by `benchmarks.image`."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from benchmarks.image import checks
from benchmarks.image.container import Image, ImageError
from benchmarks.measurements.image import image_section
from benchmarks.measurements.results import Results

PACKAGES = "opt/skillguard/lib/python3.11/site-packages"
LABELS = dict.fromkeys((f"org.opencontainers.image.{name}" for name in checks.LABELS), "0.1.0")


def looking_like_one(root: Path, listed: dict[str, str], labels: dict[str, str] | None = None) -> Any:
    """An unpacked image with one package, `skillguard` 0.1.0, and an SBOM that lists these."""
    folder = root / PACKAGES / "skillguard-0.1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: skillguard\nVersion: 0.1.0\n")
    components = [{"name": name, "version": version} for name, version in listed.items()]
    (root / checks.SBOM).write_text(json.dumps({"bomFormat": "CycloneDX", "components": components}))
    image = Mock(spec=Image, root=root, environment={"PATH": "/opt/skillguard/bin:/usr/bin"})
    image.config = {"Labels": labels or LABELS, "Healthcheck": {"Test": ["CMD", "true"]}}
    return image


def test_an_image_as_it_should_be(tmp_path: Path) -> None:
    image = looking_like_one(tmp_path, {"Skill_Guard".replace("_", "").lower(): "0.1.0"})
    assert checks.labels(image).startswith("6 labels")
    assert checks.bill(image) == "CycloneDX, 1 packages, as installed"
    assert "no compiler" in checks.slim(image)


@pytest.mark.parametrize("value", ["", "unknown"])
def test_a_label_without_a_value_is_named(tmp_path: Path, value: str) -> None:
    image = looking_like_one(tmp_path, {"skillguard": "0.1.0"}, LABELS | {"org.opencontainers.image.revision": value})
    with pytest.raises(ImageError, match="without a value: revision"):
        checks.labels(image)


def test_a_label_of_another_version_is_named(tmp_path: Path) -> None:
    image = looking_like_one(tmp_path, {"skillguard": "0.2.0"})
    with pytest.raises(ImageError, match=r"got 0\.1\.0, installed is 0\.2\.0"):
        checks.labels(image)


@pytest.mark.parametrize("listed", [{}, {"skillguard": "0.2.0"}, {"skillguard": "0.1.0", "torch": "2.13.0"}])
def test_a_bill_that_is_not_what_is_installed_is_refused(tmp_path: Path, listed: dict[str, str]) -> None:
    with pytest.raises(ImageError, match=r"differ in (skillguard|torch)"):
        checks.bill(looking_like_one(tmp_path, listed))


@pytest.mark.parametrize("found", ["usr/bin/gcc", "opt/skillguard/bin/pip", f"{PACKAGES}/scipy/tests/a.py", "bin/su"])
def test_what_serving_does_not_need_is_found(tmp_path: Path, found: str) -> None:
    image = looking_like_one(tmp_path, {"skillguard": "0.1.0"})
    (tmp_path / found).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / found).touch()
    (tmp_path / found).chmod(0o4755 if found == "bin/su" else 0o755)
    with pytest.raises(ImageError, match=Path(found).parts[-2] if "tests" in found else Path(found).name):
        checks.slim(image)


def test_files_count_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to("a")
    assert [size for _, size in checks.files(tmp_path)] == [3]


def said(text: str, error: str = "") -> Any:
    return Mock(stdout=text, stderr=error, returncode=1 if error else 0)


def test_rights_that_are_left_are_found() -> None:
    status = "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t{}\n"
    for user, bound, what in (
        ("uid=0(root)", "0000000000000000", "another user than root"),
        ("uid=10001", "00000000800405fb", "capabilities"),
    ):
        running = Mock(run=Mock(side_effect=[said(f"{user} gid=1"), said(status.format(bound))]))
        with pytest.raises(ImageError, match=what):
            checks.rights(running)
    running = Mock(run=Mock(side_effect=[said("uid=10001 gid=1"), said(status.format("0" * 16))]))
    assert checks.rights(running) == "uid=10001, no capability"


def test_a_root_that_is_written_is_found() -> None:
    with pytest.raises(ImageError, match="touch //written: written"):
        checks.read_only(Mock(run=Mock(return_value=said(""))))


def test_the_page_shows_what_was_seen() -> None:
    results = Results(Path(__file__).resolve().parents[2])
    found = results.read("image")
    text = image_section(results)
    assert found["rows"]
    for row in found["rows"]:
        assert f"| {row['check']} | {row['seen']} |" in text
