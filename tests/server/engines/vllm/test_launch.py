"""What is asked of vLLM's processes besides requests."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytestmark = pytest.mark.anyio


async def _never() -> None:
    await asyncio.Event().wait()


async def test_a_call_ends_where_the_processes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM leaves whoever waits for it waiting."""
    from vllm.v1.engine.exceptions import EngineDeadError

    from server.engines.vllm import launch

    monkeypatch.setattr(launch, "_LOOK_SECONDS", 0.01)
    llm = cast(Any, SimpleNamespace(errored=False))
    assert await launch.while_alive(llm, asyncio.sleep(0.05, "told")) == "told", "looked at several times"
    call = asyncio.create_task(launch.while_alive(llm, _never()))
    await asyncio.sleep(0)
    llm.errored = True
    with pytest.raises(EngineDeadError):
        await call


async def test_an_error_is_the_calls_own() -> None:
    from server.engines.vllm import launch

    async def fails() -> None:
        raise ValueError("no such method")

    with pytest.raises(ValueError, match="no such method"):
        await launch.while_alive(cast(Any, SimpleNamespace(errored=False)), fails())
