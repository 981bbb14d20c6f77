"""Model folders as people have them, served by the embedded engine."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from guards.errors import UnsupportedModelError
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.errors import PromptError
from server.engines.options import EmbeddedOptions, VllmOptions
from server.engines.request import Message
from tests.guards.model.test_folder import BROKEN, adapter_beside, no_default_template, tokens_beyond
from tests.guards.tiny import TEMPLATE, save_tiny
from tests.server.engines.embedded.tiny_engine import run

PARTS = TEMPLATE.replace(
    "{{ message['content'] }}", "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '' }}"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def options(folder: Path | str, **more: Any) -> EmbeddedOptions:
    return EmbeddedOptions(model=str(folder), device="cpu", **more)


def told(folder: Path | str, **more: Any) -> Any:
    async def info(engine: EmbeddedEngine) -> Any:
        return engine.info

    return run(options(folder, **more), info)


@pytest.mark.parametrize("breaks", [adapter_beside, tokens_beyond, no_default_template], ids=lambda each: each.__name__)
def test_a_folder_is_refused_at_the_start(folder: Path, breaks: Any) -> None:
    breaks(folder)
    with pytest.raises(UnsupportedModelError, match=BROKEN[breaks]):
        asyncio.run(EmbeddedEngine(options(folder)).start())


@pytest.mark.parametrize("spelling", [".", "./", "../model", "../model/"])
def test_a_model_has_a_name_however_its_path_is_spelled(
    folder: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert told(spelling).model == "model"
    assert VllmOptions(model=spelling).name == "model"


def test_names_that_are_given() -> None:
    assert EmbeddedOptions(model="org/name").name == VllmOptions(model="org/name").name == "name"
    assert EmbeddedOptions(model=".", served_name="mine").name == "mine"
    with pytest.raises(ValueError, match="needs a name"):
        EmbeddedOptions(model="/")


def test_named_templates_are_served(folder: Path) -> None:
    plain = told(folder)
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "T" + TEMPLATE}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    assert told(folder).template_sha256 == plain.template_sha256 is not None


def test_the_text_reaches_the_model_as_parts(folder: Path) -> None:
    async def ids(engine: EmbeddedEngine) -> list[tuple[int, ...]]:
        return [engine.encode_chat([Message("user", text)]) for text in ("one", "two", "one")]

    plain = run(options(folder), ids)
    (folder / "chat_template.jinja").write_text(PARTS)
    assert run(options(folder), ids) == plain
    assert plain[0] == plain[2] != plain[1]


def test_chat_is_not_served_where_text_is_lost(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("message['content']", "message['words']"))

    async def work(engine: EmbeddedEngine) -> None:
        assert engine.info.template_sha256 is None
        assert engine.encode_text("abc")
        with pytest.raises(PromptError, match="leaves out what users say"):
            engine.encode_chat([Message("user", "abc")])

    run(options(folder), work)
