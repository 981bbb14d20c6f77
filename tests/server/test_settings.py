"""Flags over the environment over the file over the defaults; what is unknown is refused, and no secret is taken."""

import itertools
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from server.cli.engine import effective_settings
from server.cli.main import parse
from server.cli.shown_settings import shown
from server.config import ServerConfig
from server.demo import DEMO
from server.engines.errors import EngineFlagError
from server.engines.options import EmbeddedOptions, VllmOptions
from server.errors import ConfigError, SettingsError
from server.refused_names import PREFIX
from server.secret_names import is_secret, redacted
from server.settings import SECTIONS, Choice, Effective, environment_name

Write = Callable[[str], str]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """SKILLGUARD_DATA alone may be there."""
    import os

    for name in os.environ:
        if name.startswith(PREFIX) and name != "SKILLGUARD_DATA":
            monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> str:
        path = tmp_path / "skillguard.toml"
        path.write_text(text)
        return str(path)

    return written


def settings(*words: str) -> Effective:
    return effective_settings(parse(["serve", *words]))


def problems(*words: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        settings(*words)
    return caught.value.problems


LAYERS = {"file": 9001, "environment": 9002, "flag": 9003}


@pytest.mark.parametrize(
    "given", [each for count in range(4) for each in itertools.combinations(LAYERS, count)], ids="+".join
)
def test_the_last_that_says_a_value_has_it(
    given: tuple[str, ...], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config", write(f"[server]\nport = {LAYERS['file']}\n")] if "file" in given else []
    if "environment" in given:
        monkeypatch.setenv("SKILLGUARD_SERVER__PORT", str(LAYERS["environment"]))
    if "flag" in given:
        words += ["--port", str(LAYERS["flag"])]
    found = settings(*words)
    last = given[-1] if given else "default"
    assert found.server.port == LAYERS.get(last, ServerConfig().port)
    assert found.origins.get(("server", "port"), ("default",)) == (last,)


OTHERS: dict[tuple[str, str], Any] = {
    ("server", "host"): "0.0.0.0",
    ("server", "abstain_style"): "refusal",
    ("server", "api_keys_file"): "keys.json",
    ("server", "anonymous_role"): "operator",
    ("server", "allowed_origins"): ["https://a.example"],
    ("server", "allowed_hosts"): ["a.example", "*.b.example"],
    ("server", "trusted_proxies"): ["10.0.0.0/8", "::1/128"],
    **{("server", f"{what}_timeout_seconds"): 12.5 for what in ("header", "body", "send", "stop")},
    ("server", "shadow"): ["a", "b"],
    ("server", "audit_dir"): "audit",
    ("server", "audit_failure"): "answer",
    ("server", "audit_max_bytes"): 5000,
    ("server", "audit_scores"): ["a"],
    ("server", "audit_redact"): [r"\d+", '"[a-z]+"'],
    ("server", "canary_interval_seconds"): 60.5,
    ("server", "reload_patience_seconds"): 7.5,
    ("transformers", "artifacts"): ["x", "y"],
    ("transformers", "trusted_key_files"): ["a.pub", "b.pub"],
    ("transformers", "judge"): "conversation",
    ("transformers", "chat_template_kwargs"): {"enable_thinking": False},
    ("transformers", "dtype"): "bfloat16",
    ("vllm", "artifacts"): [f"x@sha256:{'0a' * 32}"],
    ("vllm", "trusted_key_files"): ["a.pub"],
    ("vllm", "judge"): "conversation",
    ("vllm", "chat_template_kwargs"): {"a": [1, {"b": None}]},
    ("vllm", "flags"): ["--enforce-eager", "--max-model-len=8"],
}
"""Values of settings that are neither plain texts nor numbers nor switches."""


def another(section: str, name: str) -> Any:
    """A legal value that is not the default."""
    if (section, name) in OTHERS:
        return OTHERS[section, name]
    annotation = str(SECTIONS[section].model_fields[name].annotation)
    return True if "bool" in annotation else 1024 if "int" in annotation else "other"


KEYS = [(section, name) for section, model in SECTIONS.items() for name in model.model_fields]


def as_words(value: Any) -> str:
    """As an environment has it."""
    import json

    return value if isinstance(value, str) else json.dumps(value)


def toml_of(value: Any) -> str:
    from server.cli.shown_settings import toml

    return toml(value)


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_every_setting_is_had_by_file_and_by_environment(
    key: tuple[str, str], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, name = key
    if section == "vllm" and name == "chat_template_kwargs":
        monkeypatch.setitem(OTHERS, key, {"a": [1, {"b": 2}]})  # TOML has no null
    value = another(section, name)
    needed: dict[str, Any] = {"model": "m", "artifacts": ["a"]} if section != "server" else {}
    if name.startswith("audit_"):
        needed = {"audit_dir": "audit"}
    engine = ["--engine", section] if section != "server" else []
    lines = [f"{each} = {toml_of(of)}" for each, of in ({**needed, name: value}).items()]
    by_file = settings(*engine, "--config", write("\n".join([f"[{section}]", *lines])))
    for each, of in {**needed, name: value}.items():
        monkeypatch.setenv(environment_name((section, each)), as_words(of))
    by_environment = settings(*engine)

    def has(found: Effective) -> Any:
        model: BaseModel = found.server if section == "server" else found.options
        assert getattr(model, name) != SECTIONS[section].model_fields[name].default
        return model

    assert has(by_file) == has(by_environment)


def test_the_choice_of_the_engine_is_had_by_each(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write('engine = "vllm"\n[transformers]\nmax_running = 3\n[vllm]\nmax_waiting = 5\n')
    found = settings("--config", file)
    assert isinstance(found.options, VllmOptions)
    assert found.options.max_waiting == 5
    monkeypatch.setenv("SKILLGUARD_ENGINE", "transformers")
    found = settings("--config", file)
    assert isinstance(found.options, EmbeddedOptions)
    assert found.options.max_running == 3
    assert isinstance(settings("--config", file, "--engine", "vllm").options, VllmOptions)
    monkeypatch.setenv("SKILLGUARD_UNGUARDED", "true")
    assert settings().options.artifacts == ()
    monkeypatch.setenv("SKILLGUARD_UNGUARDED", "perhaps")
    assert problems()[0].startswith("SKILLGUARD_UNGUARDED: got 'perhaps'")
    monkeypatch.setenv("SKILLGUARD_UNGUARDED", "false")
    monkeypatch.setenv("SKILLGUARD_ENGINE", "tgi")
    assert problems()[0].startswith("SKILLGUARD_ENGINE: got 'tgi': Input should be 'transformers' or 'vllm'")


def test_the_environment_may_name_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLGUARD_CONFIG", write("[server]\nport = 9\n"))
    assert settings().server.port == 9
    assert settings("--config", write("[server]\nport = 8\n")).server.port == 8
    monkeypatch.setenv("SKILLGUARD_CONFIG", "")
    assert settings().file is None


def test_without_anything_the_demo_is_served() -> None:
    assert settings().server == ServerConfig()
    assert settings().options.model == str(DEMO / "model")
    assert [each.folder.name for each in settings().options.artifacts] == ["ksd-mathematics"]


def test_a_table_of_variables_is_one_value(write: Write) -> None:
    """Not joined with the file's, since a flag says what holds."""
    file = write("[transformers]\nchat_template_kwargs = {a = 1}\n")
    assert settings("--config", file, "--chat-template-kwargs", '{"b": 2}').options.chat_template_kwargs == {"b": 2}


def test_vllms_flags_are_all_there_and_the_last_layers_last(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's parser takes the last of two."""
    file = write('engine = "vllm"\n[vllm]\nmodel = "m"\nartifacts = ["a"]\nflags = ["--max-model-len", "64"]\n')
    monkeypatch.setenv("SKILLGUARD_VLLM__FLAGS", '["--seed=1"]')
    found = settings("--config", file, "-tp", "2", "--max-model-len=128", "--dtype", "auto")
    assert isinstance(found.options, VllmOptions)
    assert found.options.flags == (
        *("--max-model-len", "64", "--seed=1"),
        *("--dtype", "auto", "-tp", "2", "--max-model-len=128"),
    )
    assert found.origins["vllm", "flags"] == ("file", "environment", "flag")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot = 1", "FILE: prot: is no setting; wanted one of engine, unguarded, server, transformers, vllm"),
        ("[servers]\nport = 1", "FILE: servers: is no setting; did you mean server?"),
        ("[server]\nprot = 1", "FILE: server.prot: is no setting; did you mean port?"),
        ("[server]\nport = 70000", "FILE: server.port: got '70000': Input should be less than"),
        ('[server]\nshadow = "a"', "FILE: server.shadow: got 'a': Input should be a valid tuple"),
        ("server = 3", "FILE: server: got 3, wanted a table [server] of settings"),
        ("[transformers]\nmax_num_seqs = 3", "FILE: transformers.max_num_seqs: is no setting"),
        ("[vllm]\nmax_num_seqs = 3", "FILE: vllm.max_num_seqs: is no setting"),
        ("[vllm]\nmax_waiting = -1", "FILE: vllm.max_waiting: got '-1'"),
        ("port", "FILE: is no TOML file that can be read"),
        ("[server]\nport = 1\nport = 2", "FILE: is no TOML file that can be read"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(text: str, says: str, write: Write) -> None:
    file = write(text)
    (found,) = problems("--config", file)
    assert found.startswith(says.replace("FILE", file))


@pytest.mark.parametrize("flags", ['"-tp 2"', "3", '["-tp", 2]'])
def test_vllms_flags_are_a_list_of_words(flags: str, write: Write) -> None:
    file = write(f'engine = "vllm"\n[vllm]\nflags = {flags}\n')
    (found,) = problems("--config", file)
    assert found.startswith(f"{file}: vllm.flags: got ")


def test_all_that_is_wrong_is_said(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLGUARD_SERVER__HOLD_BACK_TOKENS", "many")
    file = write("[server]\nprot = 1\n[vllm]\nflag = 1\n")
    found = problems("--config", file, "--max-answers", "none")
    assert [each.partition(":")[0] for each in found] == [
        *("SKILLGUARD_SERVER__HOLD_BACK_TOKENS", "--max-answers", file, file)
    ]


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "got no such file" in problems("--config", str(tmp_path / "none.toml"))[0]
    monkeypatch.setenv("SKILLGUARD_CONFIG", str(tmp_path))
    assert "got no such file" in problems()[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("SKILLGUARD_PORT", "is no setting; did you mean SKILLGUARD_SERVER__PORT?"),
        ("SKILLGUARD_SERVER_PORT", "is no setting; did you mean SKILLGUARD_SERVER__PORT?"),
        ("SKILLGUARD_MODEL", "did you mean SKILLGUARD_TRANSFORMERS__MODEL or SKILLGUARD_VLLM__MODEL?"),
        ("SKILLGUARD_SERVR__PORT", "did you mean SKILLGUARD_SERVER__PORT?"),
        ("SKILLGUARD_ENGIN", "did you mean SKILLGUARD_ENGINE?"),
        ("SKILLGUARD_XYZZY", "is no setting; unset it, or name it otherwise"),
        ("SKILLGUARD_SERVER__PROT", "is no setting; did you mean port?"),
        ("SKILLGUARD_VLLM__MAX_NUM_SEQS", "is no setting"),
        ("SKILLGUARD_API_KEY", "none takes a secret; `skillguard key add` makes keys"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused_without_its_value(
    name: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "sk-plain-secret")
    (found,) = problems()
    assert found.startswith(f"{name}: ")
    assert says in found
    assert "sk-plain" not in found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SKILLGUARD_KEY", "sk-skillguard-x"),
        ("SKILLGUARD_URL", "http://127.0.0.1:8000"),
        ("SKILLGUARD_WITHOUT", "chromium"),
        ("SKILLGUARD_TESTS_SPAWN", "1"),
        ("SKILLGUARD_SERVICE_HOST", "10.0.0.1"),
        ("SKILLGUARD_SERVICE_PORT_HTTP", "8000"),
        ("SKILLGUARD_PORT", "tcp://10.0.0.1:8000"),
        ("SKILLGUARD_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("SKILLGUARD_METRICS_PORT", "tcp://10.0.0.1:9000"),
    ],
)
def test_what_only_begins_alike_is_let_be(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert settings().server == ServerConfig()


def test_a_list_in_the_environment_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLGUARD_SERVER__SHADOW", "ksd-code")
    assert problems() == ('SKILLGUARD_SERVER__SHADOW: got \'ksd-code\', wanted JSON, such as ["a", "b"] for a list',)


SECRET = "hf-plain-secret"


@pytest.mark.parametrize(
    "text",
    [
        f'[server]\napi_key = "{SECRET}"',
        f'[server]\napi_keys = ["{SECRET}"]',
        f'token = "{SECRET}"',
        f'[vllm]\nhf_token = "{SECRET}"',
        f'[secrets]\na = "{SECRET}"',
        f'[vllm]\nflags = ["--hf-token", "{SECRET}"]',
        f'[vllm]\nflags = ["--api-key={SECRET}"]',
    ],
)
def test_no_secret_is_taken_from_the_file_or_repeated(text: str, write: Write) -> None:
    (found,) = problems("--config", write(text))
    assert "no secret belongs in this file" in found
    assert SECRET not in found


def test_a_secret_among_vllms_flags_is_not_shown() -> None:
    words = ["--engine", "vllm", "--model", "m", "--artifacts", "a", "--hf-token", SECRET, f"--ssl-password={SECRET}"]
    found = settings(*words, "--max-num-batched-tokens", "64")
    assert isinstance(found.options, VllmOptions)
    assert SECRET in found.options.flags, "the control: vLLM gets it"
    text = shown(found)
    assert SECRET not in text
    assert '"--hf-token", "***", "--ssl-password=***", "--max-num-batched-tokens", "64"' in text


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *[(each, True) for each in ("key", "api_key", "API_KEYS", "--hf-token", "db.password", "credential")],
        *[(each, False) for each in ("api_keys_file", "hold_back_tokens", "--max-num-batched-tokens", "tokens")],
        *[(each, False) for each in ("keyword", "--tokenizer", "monkey", "")],
    ],
)
def test_what_a_secret_is_called(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


def test_no_setting_is_called_like_a_secret() -> None:
    models: list[type[BaseModel]] = [*SECTIONS.values(), Choice]
    assert not [name for model in models for name in model.model_fields if is_secret(name)]


def test_redaction_leaves_the_rest() -> None:
    assert redacted(["-tp", "2", "--token", "x", "y", "--seed=1"]) == ["-tp", "2", "--token", "***", "***", "--seed=1"]


def test_an_empty_list_of_artifacts_is_no_way_to_serve_unguarded(write: Write) -> None:
    file = write('[transformers]\nmodel = "m"\nartifacts = []\n')
    with pytest.raises(ConfigError, match="so nothing would be guarded"):
        settings("--config", file)
    assert settings("--config", file, "--unguarded").options.artifacts == ()
    guarded = write('[transformers]\nmodel = "m"\nartifacts = ["a"]\n')
    with pytest.raises(ConfigError, match="--unguarded: got --artifacts as well"):
        settings("--config", guarded, "--unguarded")


def test_another_engines_flag_is_refused_whoever_chose_the_engine(write: Write) -> None:
    file = write('engine = "vllm"\n')
    with pytest.raises(EngineFlagError, match="--max-running: belongs to engine transformers; vLLM calls it"):
        settings("--config", file, "--max-running", "3")
    with pytest.raises(EngineFlagError, match="engine transformers has no such flag"):
        settings("--config", file, "--engine", "transformers", "-tp", "2")


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_what_is_shown_is_a_file_that_gives_the_same(
    engine: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKILLGUARD_SERVER__ABSTAIN_TEXT", 'Nicht "hier"\\ \t\x7f\u2028.')
    words = ["--engine", engine, "--model", "m", "--artifacts", "a", "b", "--chat-template-kwargs", '{"a b": [1, {}]}']
    found = settings(*words, *(["--enforce-eager"] if engine == "vllm" else ["--dtype", "float16"]))
    text = shown(found)
    tomllib.loads(text)
    monkeypatch.undo()
    again = settings("--config", write(text))
    assert again.settings == found.settings
    assert 'abstain_style = "content_filter"  # default' in text
    assert "  # environment SKILLGUARD_SERVER__ABSTAIN_TEXT" in text
    assert f'engine = "{engine}"  # flag --engine' in text
