"""The look at a model's folder is the embedded engine's, before vLLM is started: to serve and to calibrate."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guards.errors import UnsupportedModelError
from guards.inside.transformers.loading import load_model
from guards.model.sites import Site
from server.engines.options import VllmOptions
from server.engines.request import Message
from tests.guards.model.test_folder import (
    BROKEN,
    adapter_beside,
    end_beyond,
    no_default_template,
    second_weights,
    shard_missing,
    tokens_beyond,
)
from tests.guards.model.test_weights import by_rename, in_place, other_bytes
from tests.guards.tiny import save_tiny
from tests.server.engines.embedded.test_folders import PARTS
from tests.server.test_no_remote_code import evil, ran

__all__ = ["evil", "ran"]
FLAGS = ("--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 24), "--max-model-len", "64")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


@pytest.fixture
def unstarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that starts vLLM's processes fails."""

    def launch(*_: Any, **__: Any) -> None:
        pytest.fail("vLLM was started")

    monkeypatch.setattr("server.engines.vllm.engine.launch", launch)
    monkeypatch.setattr("server.engines.vllm.capture.launch", launch)


@pytest.mark.usefixtures("unstarted")
@pytest.mark.parametrize(
    "breaks",
    [adapter_beside, second_weights, shard_missing, tokens_beyond, end_beyond, no_default_template],
    ids=lambda each: each.__name__,
)
def test_a_folder_whose_parts_are_not_of_one_model(folder: Path, breaks: Callable[[Path], None]) -> None:
    from server.engines.vllm.capture import VllmActivations
    from server.engines.vllm.engine import VllmEngine

    breaks(folder)
    options = VllmOptions(model=str(folder), flags=FLAGS)
    with pytest.raises(UnsupportedModelError, match=BROKEN[breaks]):
        asyncio.run(VllmEngine(options).start())
    with pytest.raises(UnsupportedModelError, match=BROKEN[breaks]):
        VllmActivations(options, Site.KEY)


@pytest.mark.parametrize("change", [in_place, by_rename], ids=lambda each: each.__name__)
def test_weights_that_change_while_vllm_loads_them(
    folder: Path, change: Callable[[Path, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.engines.vllm.engine import VllmEngine

    other = other_bytes(folder)
    ended: list[Any] = []

    class Started:
        async def collective_rpc(self, _: str) -> list[dict[str, Any]]:
            return [{"layers": 3, "here": [0, 1, 2], "widths": {"d_model": 16, "d_ff": 24}}]

        def shutdown(self) -> None:
            ended.append(self)

    def launch(*_: Any) -> Started:
        change(folder / "model.safetensors", other)
        return Started()

    monkeypatch.setattr("server.engines.vllm.engine.launch", launch)
    with pytest.raises(UnsupportedModelError, match="changed while the model was loaded"):
        asyncio.run(VllmEngine(VllmOptions(model=str(folder), flags=FLAGS)).start())
    assert len(ended) == 1, "what runs is stopped"


def test_no_code_of_the_folder_runs(evil: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.engines.vllm.engine import VllmEngine

    def launch(config: Any, *_: Any) -> None:
        assert config.model_config.trust_remote_code is False
        raise UnsupportedModelError("as far as this")

    monkeypatch.setattr("server.engines.vllm.engine.launch", launch)
    with pytest.raises(UnsupportedModelError, match="as far as this"):
        asyncio.run(VllmEngine(VllmOptions(model=str(evil), flags=FLAGS)).start())
    assert not ran.exists()


def test_prompts_are_the_embedded_engines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that wants parts, an end token that is not marked special, and the folder named by a dot."""
    from server.engines.vllm.engine import VllmEngine

    (folder / "chat_template.jinja").write_text(PARTS)
    codec = load_model(folder, "cpu").codec
    monkeypatch.chdir(folder)

    async def work() -> tuple[str, tuple[int, ...]]:
        engine = VllmEngine(VllmOptions(model=".", flags=FLAGS))
        await engine.start()
        try:
            return engine.info.model, engine.encode_chat([Message("user", "one two")])
        finally:
            await engine.stop()

    name, ids = asyncio.run(work())
    assert (name, ids) == (folder.name, codec.encode_frame("chat", "one two"))
    shutil.rmtree(folder)
