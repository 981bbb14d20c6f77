"""Whether a server would start, told without starting it."""

import json
import shutil
from pathlib import Path

import pytest

from guards.artifact.store import read_artifact
from server.audit.folder import AuditFolder
from server.auth import Role, new_key
from server.cli.main import main
from tests.served import save_tiny_model, tiny_served
from tests.server.harness import keys_file

KEY, ENTRY = new_key("ann", Role.USER)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return tiny_served(tmp_path_factory.mktemp("served"))


@pytest.fixture
def words(served: tuple[Path, Path, Path]) -> list[str]:
    model, ksd, na = served
    return ["--model", str(model), "--artifacts", str(ksd), str(na)]


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, what was printed, and the errors."""
    status = main(["check-config", *words])
    out, err = capsys.readouterr()
    return status, out, err


def test_sound_settings_would_start(
    served: tuple[Path, Path, Path], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "skillguard.toml"
    keys = keys_file(tmp_path, ENTRY, guards={"ksd-tens": {"mode": "shadow", "tau_factor": 1.2}})
    file.write_text(f"[server]\nport = 9000\napi_keys_file = {json.dumps(str(keys))}\n")
    status, out, err = checked(capsys, *words, "--config", str(file), "--max-running", "3")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert f"port = 9000  # file {file}" in lines
    assert "max_running = 3  # flag --max-running" in lines
    assert "max_waiting = 256  # default" in lines
    digest = read_artifact(served[1]).digest
    assert f"# guard ksd-tens: ksd, skill tens, sha256:{digest}, fits the model" in lines
    assert "# tenant team: 1 keys" in lines
    together = "canaries are sent with it on and with it off; rates were measured without"
    assert f"# guard ksd-tens reads what intervention na-tens changes: {together}" in lines
    assert lines[-1] == "# serve would start"
    assert ENTRY.sha256 not in out


def test_guards_that_cannot_be_served_together_are_said_once(
    served: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, ksd, na = served
    copies = [shutil.copytree(na, tmp_path / f"na-{index}") for index in range(5)]
    status, out, err = checked(capsys, "--model", str(model), "--artifacts", str(ksd), *map(str, copies))
    assert (status, "serve would start" in out) == (1, False)
    assert err.count("interventions that change what it reads (na-0, na-1, na-2, na-3, na-4), wanted at most 4") == 1


def test_a_model_folder_that_is_not_there_is_an_error_as_at_the_start(
    served: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in (tmp_path / "none", served[0] / "config.json"):
        status, out, err = checked(capsys, "--model", str(model), "--artifacts", str(served[1]))
        assert (status, "serve would start" in out) == (1, False)
        assert f"{model}: got " in err
    status, out, _ = checked(capsys, "--model", "organisation/name", "--artifacts", str(served[1]))
    assert (status, "organisation/name: is no folder here" in out) == (0, True), "the control: the hub may have it"


def test_wrong_settings_are_all_said(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = checked(capsys, "--port", "70000", "--max-running", "0")
    assert (status, out) == (1, "")
    assert err.startswith("skillguard check-config: error: --port: got '70000'")
    assert "\n--max-running: got '0'" in err


def test_a_flag_that_the_engine_lacks_is_refused_as_serve_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(capsys, "--max-num-seqs", "3")[0] == 2


def test_files_that_are_unsound_are_all_said(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = keys_file(tmp_path, ENTRY, guards={"nothing": {"mode": "off"}})
    status, out, err = checked(capsys, *words, "--api-keys-file", str(keys), "--shadow", "na-tens", "--device", "tpu")
    assert status == 1
    assert "serve would start" not in out
    for wanted in ("'nothing'; known: ksd-tens, na-tens", "guard 'na-tens' changes activations", "device 'tpu'"):
        assert wanted in err
    keys.write_text("{")
    _, _, err = checked(capsys, *words, "--api-keys-file", str(keys))
    assert "Invalid JSON" in err


def test_an_audit_folder_is_looked_for(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "log"
    words += ["--audit-dir", str(folder), "--audit-scores", "ksd-tens"]
    status, _, err = checked(capsys, *words)
    assert (status, f"audit_dir {folder}: got no such folder" in err) == (1, True)
    folder.mkdir()
    status, out, _ = checked(capsys, *words)
    assert (status, f"# audit_dir {folder}: is there and can be written" in out) == (0, True)
    assert list(folder.iterdir()) == [], "nothing is written"
    assert f'audit_dir = "{folder}"  # flag --audit-dir' in out.splitlines()
    assert 'audit_failure = "refuse"  # default' in out
    _, _, err = checked(capsys, *words[:-1], "nothing")
    assert "audit_scores: no guard named 'nothing'; known: ksd-tens, na-tens" in err
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    status, _, err = checked(capsys, *words)
    assert (status, "make it writable" in err) == (1, True)


def test_an_audit_folder_that_a_server_holds_is_told(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words += ["--audit-dir", str(tmp_path)]
    told = f"# audit_dir {tmp_path}: another server writes there now"
    running = AuditFolder(tmp_path, 4096, fsync=False)
    status, out, _ = checked(capsys, *words)
    assert (status, told in out) == (0, True)
    running.append([{"kind": "start"}])
    running.close()
    assert told not in checked(capsys, *words)[1]
    AuditFolder(tmp_path, 4096, fsync=False).close()  # what was looked at can be had


def test_an_audit_log_that_cannot_be_gone_on_from_is_told(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words += ["--audit-dir", str(tmp_path)]
    log = AuditFolder(tmp_path, 4096, fsync=False)
    log.append([{"kind": "start"}, {"kind": "stop"}])
    log.close()
    (file,) = tmp_path.iterdir()
    sound = file.read_bytes()
    file.write_bytes(sound + b'{"a line that was ne')
    assert checked(capsys, *words)[0] == 0, "the server cuts it off"
    assert file.read_bytes().endswith(b"ne"), "which is not done here"
    file.write_bytes(sound.replace(b"stop", b"stay"))
    status, _, err = checked(capsys, *words)
    assert status == 1
    assert f"{file.name}: the last line cannot be gone on from: it was changed" in err


def test_an_artifact_of_another_model_is_told(
    served: tuple[Path, Path, Path], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)
    status, out, err = checked(capsys, "--model", str(other), "--artifacts", str(served[1]))
    assert status == 1
    assert "ksd-tens: was calibrated on another model (weights_sha256: model has" in err
    assert "DOES NOT FIT the model" in out
    _, _, err = checked(capsys, *words, "--dtype", "bfloat16")
    assert "dtype: model has 'bfloat16', artifact wants 'float32'" in err


def test_a_damaged_artifact_is_told(
    served: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(served[1], tmp_path / "ksd-tens")
    tensors = copy / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    status, _, err = checked(capsys, "--model", str(served[0]), "--artifacts", str(copy))
    assert status == 1
    assert "the file is damaged" in err


def test_a_model_that_is_no_folder_here_is_left_to_the_start(
    served: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = checked(capsys, "--model", "organisation/name", "--artifacts", str(served[1]))
    assert status == 0
    assert "is no folder here" in out
    assert "not compared with the model" in out


@pytest.mark.real
def test_a_changed_chat_template_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from server.demo import DEMO

    model = shutil.copytree(DEMO / "model", tmp_path / "model")
    guard = str(DEMO / "guards" / "ksd-mathematics")
    assert checked(capsys, "--model", str(model), "--artifacts", guard)[0] == 0
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("{{ bos_token }}", "{{ bos_token }}Be brief.", 1))
    status, _, err = checked(capsys, "--model", str(model), "--artifacts", guard)
    assert status == 1
    assert "the chat template or the tokenizer is not the calibrated one" in err
    assert checked(capsys, "--model", str(model), "--artifacts", guard, "--accept-template")[0] == 0
