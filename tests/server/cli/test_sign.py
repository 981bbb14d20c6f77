"""`skillguard keygen` and `sign`, and what commands say of pins and signatures."""

import json
from pathlib import Path

import pytest

from guards.artifact.store import read_artifact
from server.cli.main import main
from tests.served import tiny_served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return tiny_served(tmp_path_factory.mktemp("served"))


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(words) == status
    out, err = capsys.readouterr()
    return out + err


def test_from_a_key_to_a_server_that_would_start(
    served: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, ksd, _ = served
    key, digest = tmp_path / "key", read_artifact(ksd).digest
    made = said(capsys, "keygen", str(key))
    name = made.split()[-1]
    assert "PRIVATE" not in made
    assert all(line not in made for line in key.read_text().splitlines())
    check = ("check-config", "--model", str(model), "--trusted-key-files", f"{key}.pub", "--artifacts")
    assert "got no signature, wanted one of" in said(capsys, *check, str(ksd), status=1)
    assert f"sha256:{digest}, signed by {name}" in said(capsys, "sign", str(ksd), "--key", str(key))
    would = said(capsys, *check, f"{ksd}@sha256:{digest}")
    assert f"sha256:{digest}, pinned, signed by {name[:16]}..., fits the model" in would
    assert f'artifacts = ["{ksd}@sha256:{digest}"]' in would
    assert "and it is pinned to sha256:0000" in said(capsys, *check, f"{ksd}@sha256:{'0' * 64}", status=1)
    assert "wanted FOLDER@sha256:DIGEST" in said(capsys, *check, f"{ksd}@sha256:12", status=1)
    shown = json.loads(said(capsys, "inspect", str(ksd), "--json"))
    assert (shown["digest"], shown["signed_by"]) == (digest, [name])
    shown_to_people = "".join(said(capsys, "inspect", str(ksd)).replace("│", "").split())
    assert digest in shown_to_people, "whole, so that it can be pinned"
    assert name in shown_to_people


def test_what_cannot_be_signed_or_made(
    served: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "keygen", str(tmp_path / "key"))
    assert "is there already" in said(capsys, "keygen", str(tmp_path / "key"), status=1)
    (tmp_path / "key").chmod(0o644)
    told = said(capsys, "sign", str(served[1]), "--key", str(tmp_path / "key"), status=1)
    assert "others may read it (mode 644)" in told
    (tmp_path / "key").chmod(0o600)
    told = said(capsys, "sign", str(tmp_path / "none"), "--key", str(tmp_path / "key"), status=1)
    assert "no such folder" in told
