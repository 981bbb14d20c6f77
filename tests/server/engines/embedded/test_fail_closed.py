"""The embedded engine: nothing fails open, at the start or later."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from guards.artifact.store import read_artifact, write_artifact
from guards.errors import ArtifactError, ArtifactMismatchError
from guards.inside.transformers.loading import load_model
from guards.model.sites import Place, Site
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.errors import EngineStoppedError
from server.engines.events import FinishReason
from server.engines.options import EmbeddedOptions
from server.engines.request import EngineRequest, Sampling
from tests.served import ksd_guard, retain_prompt, save_tiny_model, write_guard
from tests.server.engines.embedded.tiny_engine import Answer, Served, ask, guarded, run
from tests.server.harness import CHECKS, serving


def _module(engine: EmbeddedEngine, site: Site) -> nn.Module:
    """That of a site in the layer whose key vectors are scored."""
    return engine._loaded.sites.tap(Place(0, site)).module


def test_a_broken_activation_is_an_error_and_lets_nothing_out(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> tuple[Answer, Answer]:
        weight = _module(engine, Site.PRE_ACTIVATION).get_parameter("weight")
        saved = weight.clone()
        weight[0, 0] = torch.nan
        broken = await ask(engine, retain_prompt(0), "broken")
        weight.copy_(saved)
        return broken, await ask(engine, retain_prompt(0), "mended")

    broken, mended = run(guarded(served), work)
    assert (broken.text, broken.finish.reason, broken.finish.verified) == ("", FinishReason.ERROR, False)
    assert "INVALID" in (broken.finish.error or "")
    assert mended.finish.reason is not FinishReason.ERROR, "the engine serves on"


def test_a_check_names_a_broken_guard_as_such(served: Served) -> None:
    """Through the server, with a real engine: the code is the one that operators watch for."""
    engine: Any = EmbeddedEngine(guarded(served))

    async def work() -> tuple[Any, Any]:
        async with serving(engine) as running:
            body = {"model": engine.info.model, "prompt": list(retain_prompt(0))}
            well = await running.post(CHECKS, body)
            _module(engine, Site.PRE_ACTIVATION).get_parameter("weight")[0, 0] = torch.nan
            return well.status_code, await running.error(CHECKS, body)

    well, error = asyncio.run(work())
    assert well == 200, "the control"
    assert (error["status"], error["code"]) == (500, "guard_error")


def test_hooks_taken_off_behind_its_back_stop_the_engine(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> Answer:
        assert engine._attachment is not None
        engine._attachment.remove()
        answer = await ask(engine, retain_prompt(0))
        for _ in range(1000):
            if not engine.healthy():
                break
            await asyncio.to_thread(engine._manager._generation_thread.join, 0.01)
        assert not engine.healthy()
        with pytest.raises(EngineStoppedError):
            engine.submit(EngineRequest("later", retain_prompt(0), Sampling(max_tokens=1)))
        return answer

    answer = run(guarded(served), work)
    assert (answer.text, answer.finish.reason) == ("", FinishReason.ERROR)


def test_one_hook_that_does_not_run_is_missing_not_a_pass(served: Served) -> None:
    async def work(engine: EmbeddedEngine) -> Answer:
        _module(engine, Site.KEY)._forward_pre_hooks.clear()
        return await ask(engine, retain_prompt(0))

    answer = run(guarded(served), work)
    assert (answer.text, answer.finish.reason) == ("", FinishReason.ERROR)
    assert "MISSING" in (answer.finish.error or "")


def test_another_models_artifact_stops_the_start(served: Served, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)

    async def nothing(_: EmbeddedEngine) -> None:
        pytest.fail("must not start")

    with pytest.raises(ArtifactMismatchError, match="weights_sha256"):
        run(EmbeddedOptions(model=str(other), artifacts=(served[1],)), nothing)


def test_another_tokenizer_stops_the_start(served: Served, tmp_path: Path) -> None:
    """Canaries are token ids and so would agree, while every text would become other ids."""
    other = tmp_path / "model"
    shutil.copytree(served[0], other)
    tokenizer = (other / "tokenizer.json").read_text()
    assert '"w10": 10' in tokenizer
    swapped = tokenizer.replace('"w10": 10', '"w10": 11').replace('"w11": 11', '"w11": 10')
    (other / "tokenizer.json").write_text(swapped)
    engine = EmbeddedEngine(EmbeddedOptions(model=str(other), artifacts=(served[1],)))
    with pytest.raises(ArtifactMismatchError, match="tokenizer_sha256"):
        asyncio.run(engine.start())


def test_an_artifact_without_canaries_is_refused(served: Served, tmp_path: Path) -> None:
    loaded = load_model(served[0], "cpu")
    folder = write_guard(tmp_path / "bare", loaded, ksd_guard(loaded))
    artifact = read_artifact(folder)
    quiet = tuple(canary for canary in artifact.manifest.canaries if not canary.fires)
    write_artifact(folder, artifact.manifest.model_copy(update={"canaries": quiet}), artifact.tensors)
    with pytest.raises(ArtifactError, match="holds no canary on which its guard fires"):
        EmbeddedEngine(EmbeddedOptions(model=str(served[0]), artifacts=(folder,)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_batcher_whose_thread_ends_leaves_nobody_waiting(served: Served) -> None:
    """By what is no Exception, of which transformers fails no request."""

    async def work(engine: EmbeddedEngine) -> Answer:
        def end(_: nn.Module, __: object) -> None:
            raise SystemExit

        _module(engine, Site.PRE_ACTIVATION).register_forward_pre_hook(end)
        return await asyncio.wait_for(ask(engine, retain_prompt(0)), 20)

    answer = run(guarded(served), work)
    assert (answer.text, answer.finish.reason) == ("", FinishReason.ERROR)
    assert answer.finish.error == "the engine stopped"
