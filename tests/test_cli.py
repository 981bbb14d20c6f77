"""The command line: instant help, clear refusals, one line per error."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from server.auth import load_keys
from server.cli import build_parser, main
from server.cli_fields import build_settings
from server.cli_serve import demo_defaults
from server.config import ServerConfig
from server.engines.options import EmbeddedOptions
from server.errors import ConfigError


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 1
    return capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom server.cli import build_parser\nbuild_parser().format_help()\n"
        "print([m for m in ('torch', 'transformers', 'scipy', 'fastapi', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["serve", "calibrate", "evaluate", "inspect", "import-esu", "key"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: skillguard" in capsys.readouterr().out


def test_serving_without_guards_must_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--unguarded" in refused(capsys, "serve", "--model", "anything")
    assert "give one of them" in refused(capsys, "serve", "--unguarded", "--artifacts", "x")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--port", "eight"], "--port: got 'eight'"),
        (["--abstain-style", "silence"], "--abstain-style: got 'silence'"),
        (["--max-running", "0"], "--max-running: got '0'"),
        (["--dtype", "int4"], "--dtype: got 'int4'"),
    ],
)
def test_bad_values_name_option_and_value(
    arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wanted in refused(capsys, "serve", *arguments)


def test_defaults_come_from_the_settings() -> None:
    args = build_parser().parse_args(["serve"])
    options = build_settings(EmbeddedOptions, args, **demo_defaults(args))
    assert build_settings(ServerConfig, args) == ServerConfig()
    assert (options.served_name, [path.name for path in options.artifacts]) == ("skillguard-demo", ["ksd-mathematics"])
    with pytest.raises(ConfigError):
        build_settings(ServerConfig, build_parser().parse_args(["serve", "--port", "70000"]))


def test_a_key_can_have_guards_that_only_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    for arguments in ["alice"], ["bob", "--shadow", "a", "--shadow", "b", "--shadow", "a"], ["carol"]:
        assert main(["key", *arguments, "--file", str(path)]) == 0
    keys = json.loads(path.read_text())["keys"]
    assert [key.get("shadow") for key in keys] == [None, ["a", "b"], None]
    assert [key.shadow for key in load_keys(path)] == [(), ("a", "b"), ()]


@pytest.mark.parametrize("target", ["/nowhere/artifact", "http://127.0.0.1:9"])
def test_inspect_says_what_is_missing(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert target in refused(capsys, "inspect", target)


def test_a_new_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    assert main(["key", "alice", "--file", str(path)]) == 0
    assert main(["key", "bob", "--file", str(path), "--role", "operator"]) == 0
    shown = capsys.readouterr().out.split()
    text = path.read_text()
    assert [(key["name"], key["role"]) for key in json.loads(text)["keys"]] == [("alice", "user"), ("bob", "operator")]
    assert not any(key in text for key in shown)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "already" in refused(capsys, "key", "alice", "--file", str(path))
