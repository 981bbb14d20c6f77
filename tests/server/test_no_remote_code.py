"""That no code of a model's folder is run, whatever somebody answers whom transformers asks."""

import ast
import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from guards.errors import UnsupportedModelError
from guards.inside.transformers import loading
from guards.inside.transformers.loading import load_config
from server.cli.main import main
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.options import EmbeddedOptions
from tests.guards.tiny import save_tiny

ROOT = Path(__file__).resolve().parents[2]
RUNS = 'open(r"{}", "w").close()\n'
CALLERS = sorted(
    path
    for room in ("server", "guards", "artifacts", "benchmarks")
    for path in (ROOT / room).rglob("*.py")
    if ".from_pretrained(" in path.read_text()
)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that the folder's code would make."""
    return tmp_path / "ran"


@pytest.fixture
def evil(tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound model whose every file offers code; standard input says yes to whatever is asked."""
    folder = save_tiny(tmp_path / "evil")
    (folder / "evil.py").write_text(RUNS.format(ran))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(RUNS.format(ran))
    for name, auto in (
        (
            "config.json",
            {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": [None, "evil.Tok"]},
        ),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "evil.Tok"]}),
        ("processor_config.json", {"AutoProcessor": "evil.P"}),
        ("generation_config.json", {"AutoGenerationConfig": "evil.G"}),
    ):
        path = folder / name
        record = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**record, "auto_map": auto}))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 50))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def test_it_would_run_where_it_is_left_to_ask(evil: Path, ran: Path) -> None:
    """The positive control: of a model that transformers does not know itself, so that it asks."""
    path = evil / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "mine"}))
    with pytest.raises(UnsupportedModelError):
        load_config(evil)
    assert not ran.exists()
    with pytest.raises(AttributeError):
        AutoConfig.from_pretrained(evil, local_files_only=True)
    assert ran.exists()


def test_not_by_an_engine(evil: Path, ran: Path) -> None:
    async def start() -> None:
        engine = EmbeddedEngine(EmbeddedOptions(model=str(evil), device="cpu", generation_config=str(evil)))
        await engine.start()
        await engine.stop()

    asyncio.run(start())
    assert not ran.exists()


def test_not_by_a_look_at_the_settings(evil: Path, ran: Path) -> None:
    assert main(["check-config", "--model", str(evil), "--unguarded"]) == 0
    assert not ran.exists()


def test_not_by_a_calibration(evil: Path, ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = loading.load_model
    loaded: list[Any] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        loaded.append(load(*arguments, **named))
        return loaded[-1]

    monkeypatch.setattr(loading, "load_model", counted)
    examples = tmp_path / "examples.jsonl"
    examples.write_text('{"text": "abc"}\n')
    source = ["--forget", str(examples), "--retain", str(examples)]
    words = ["calibrate", "ksd", "--model", str(evil), "--skill", "sums", *source, "--output", str(tmp_path / "out")]
    assert main(words) == 1, "one example is too few"
    assert len(loaded) == 1
    assert not ran.exists()


@pytest.mark.parametrize("path", CALLERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_call_that_could_ask_says_no(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr == "from_pretrained":
            assert isinstance(node, ast.Call)
            said = {each.arg: ast.unparse(each.value) for each in node.keywords}
            of = ast.unparse(called.value)
            assert said.get("trust_remote_code") == "False" or of == "GenerationConfig", f"{of}, line {node.lineno}"
