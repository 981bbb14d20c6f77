"""Another artifact's numbers come into a compiled vLLM's buffers, while 64 callers ask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from guards.errors import GuardReadingError
from guards.inside.transformers.loading import load_model
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.options import EmbeddedOptions, VllmOptions
from tests.served import ksd_guard, write_guard
from tests.server.engines import exchanged
from tests.server.engines.exchanged import (
    ADMIN,
    CALLERS,
    FIFTIES,
    PROMPTS,
    ROUNDS,
    TENANT,
    TENS,
    Served,
    lie,
    prompt,
    require_attributed,
    serving,
    swap_under_load,
)
from tests.server.engines.vllm.test_families import WIDE

pytestmark = pytest.mark.anyio
FLAGS = ("--dtype", "float32", "--max-model-len", "256", "--kv-cache-memory-bytes", str(1 << 26))
NEAR = 5e-3
"""Between two engines in float32."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return exchanged.write_served(tmp_path_factory.mktemp("exchanged"), **WIDE)


@pytest.fixture(scope="module")
async def wanted(served: Served) -> dict[str, dict[tuple[int, ...], float]]:
    """By digest, what each guard reads of every prompt, on the embedded engine, which never had another."""
    return {
        digest: await exchanged.fresh_scores(
            EmbeddedEngine(EmbeddedOptions(model=str(served.model), artifacts=(folder,))), PROMPTS
        )
        for folder, digest in served.digests.items()
    }


@pytest.mark.parametrize(
    "flags",
    [("--block-size", "32"), ("--block-size", "32", "--enforce-eager", "--tensor-parallel-size", "2")],
    ids=["compiled", "two ranks"],
)
async def test_no_answer_fails_and_each_is_judged_by_one_guard_alone(
    served: Served,
    wanted: dict[str, dict[tuple[int, ...], float]],
    flags: Sequence[str],
    tmp_path: Path,
) -> None:
    from server.engines.vllm.engine import VllmEngine

    old, new = served.digests.values()
    options = VllmOptions(model=str(served.model), artifacts=(served.old,), flags=(*FLAGS, *flags))
    engine = VllmEngine(options)

    async def scores() -> list[float]:
        return [(await engine.check(ids, f"c{i}", tenant=TENANT))[0].score for i, ids in enumerate(PROMPTS)]

    async with serving(engine, tmp_path) as running:
        refused = await running.reload(lie(served, tmp_path / "lying"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "change_refused")
        assert "canary 0" in refused.json()["error"]["message"]
        assert await scores() == pytest.approx([*wanted[old].values()], abs=NEAR), "the old one is back"

        loaded = load_model(served.model, "cpu", "float32")
        other = await running.reload(write_guard(tmp_path / "cube", loaded, ksd_guard(loaded)))
        assert other.status_code == 409
        assert "restart needed" in other.json()["error"]["message"]

        swapped = await swap_under_load(running, engine, served.new)
        assert swapped.reply.status_code == 200, swapped.reply.text
        assert swapped.reply.json()["digest"] == new
        assert swapped.running_at_offer > 0, "answers were being written"
        assert swapped.waiting_at_exchange > 0, "and others had to wait"
        assert swapped.running_at_exchange == 0
        assert swapped.ready_at_exchange == (503, "reloading")
        assert len(swapped.answers) == CALLERS * ROUNDS, "no request failed"
        after = [await running.ask(prompt(skill, 0)) for skill in (TENS, FIFTIES)]
        assert [each.reason for each in after] == ["length", "content_filter"]
        assert await scores() == pytest.approx([*wanted[new].values()], abs=NEAR)
        metrics = await running.client.get("/metrics", headers={"authorization": f"Bearer {ADMIN[0]}"})
        assert "skillguard_unverified_requests_total 0.0" in metrics.text
        require_attributed(running, [*swapped.answers, *after], served, wanted, off=NEAR)
        await _without_a_reset(engine, prompts=PROMPTS[:6])


async def _without_a_reset(engine: Any, prompts: Sequence[tuple[int, ...]]) -> None:
    """The positive control: prompts whose beginnings vLLM still holds go on from slots of the guard before.

    Their states are forgotten, so that these read nothing, which is an error.
    """
    llm = engine._llm

    async def nothing() -> bool:
        return True

    reset, llm.reset_prefix_cache = llm.reset_prefix_cache, nothing
    try:
        await engine.exchange()
        for ids in prompts:
            with pytest.raises(GuardReadingError):
                await engine.check(ids, "stale", tenant=TENANT)
    finally:
        llm.reset_prefix_cache = reset
    await engine.exchange()
    assert all([await engine.check(ids, "again", tenant=TENANT) for ids in prompts])
